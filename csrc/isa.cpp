// Linked into both libraries: the kernels' and the Python module's, which reports the choice.
#include "ifdd/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#if defined(IFDD_HAVE_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ifdd {

const char* isa_name([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  return isa == Isa::v4 ? "x86-64-v4" : isa == Isa::v3 ? "x86-64-v3" : "x86-64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "generic";
#endif
}

bool isa_compiled(Isa isa) {
  IFDD_IF_V3(if (isa == Isa::v3) return true;)
  IFDD_IF_V4(if (isa == Isa::v4) return true;)
  return isa == Isa::base;
}

bool isa_supported(Isa isa) {
  IFDD_IF_V3(if (isa == Isa::v3) return __builtin_cpu_supports("x86-64-v3");)
  IFDD_IF_V4(if (isa == Isa::v4) return __builtin_cpu_supports("x86-64-v4");)
  return isa == Isa::base;
}

Isa active_isa() {
  static const Isa chosen = [] {
    const char* wanted = std::getenv("IFDD_CPU_ISA");
    Isa best = Isa::base;
    for (Isa isa : {Isa::base, Isa::v3, Isa::v4}) {
      if (!isa_compiled(isa) || !isa_supported(isa)) continue;
      best = isa;
      if (wanted != nullptr && std::strcmp(wanted, isa_name(isa)) == 0) break;
    }
    return best;
  }();
  return chosen;
}

namespace {

struct TileChoice {
  MatrixTiles use;
  std::string text;
};

// Why this process cannot use the CPU's matrix tiles; null if it can.
const char* without_tiles() {
#if defined(IFDD_HAVE_TILES)
  if (!__builtin_cpu_supports("amx-bf16") || !__builtin_cpu_supports("amx-tile")) return "this CPU has none";
  if (std::getenv("IFDD_CPU_ISA") != nullptr) return "IFDD_CPU_ISA is set";
  if (active_isa() != Isa::v4) return "the instruction set is below x86-64-v4";
  // Linux keeps the tiles' registers from a process until it asks for them.
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? nullptr : "the system does not grant them";
#else
  return "not compiled in: built without x86-64-v4, for another system than Linux or by GCC before 11";
#endif
}

const TileChoice& tile_choice() {
  static const TileChoice choice = [] {
    const std::string name = "IFDD_CPU_TILES";
    const char* variable = std::getenv(name.c_str());
    const std::string wanted = variable == nullptr ? "" : variable;
    if (wanted == "emulated") return TileChoice{MatrixTiles::emulated, "emulated (" + name + " is set)"};
    if (wanted == "off") return TileChoice{MatrixTiles::off, "off (" + name + " is set)"};
    const char* reason = without_tiles();
    TileChoice found{reason == nullptr ? MatrixTiles::used : MatrixTiles::off, "used"};
    if (reason != nullptr) found.text = std::string("off (") + reason + ")";
    if (!wanted.empty()) found.text += "; " + name + ": expected 'off' or 'emulated', got '" + wanted + "': ignored";
    return found;
  }();
  return choice;
}

}  // namespace

MatrixTiles matrix_tiles() { return tile_choice().use; }
const char* matrix_tiles_text() { return tile_choice().text.c_str(); }

}  // namespace ifdd

// Asked of the kernels' library by any Python: the module with the rest belongs to the version it was built with.
extern "C" __attribute__((visibility("default"))) const char* ifdd_instruction_set() {
  return ifdd::isa_name(ifdd::active_isa());
}
extern "C" __attribute__((visibility("default"))) const char* ifdd_matrix_tiles() { return ifdd::matrix_tiles_text(); }
