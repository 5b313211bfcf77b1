// Linked into both libraries: the kernels' and the Python module's, which reports the choice.
#include "ifdd/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__) && defined(__linux__)
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

bool matrix_tiles() {
#if defined(__x86_64__) && defined(__linux__) && defined(IFDD_HAVE_V4)
  static const bool usable = [] {
    if (active_isa() != Isa::v4 || std::getenv("IFDD_CPU_ISA") != nullptr) return false;
    if (!__builtin_cpu_supports("amx-bf16") || !__builtin_cpu_supports("amx-tile")) return false;
    // Linux keeps the tiles' registers from a process until it asks for them.
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return usable;
#else
  return false;
#endif
}

}  // namespace ifdd

// Asked of the kernels' library by any Python: the module with the rest belongs to the version it was built with.
extern "C" __attribute__((visibility("default"))) const char* ifdd_instruction_set() {
  return ifdd::isa_name(ifdd::active_isa());
}
