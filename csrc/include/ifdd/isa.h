// Instruction sets: which ones this build carries and which one this machine runs.
//
// A kernel file (csrc/cpu/kernels/<op>.cpp) is compiled once per set, with IFDD_ISA naming the set; everything it
// defines lives in namespace ifdd::cpu::IFDD_ISA, so the copies never meet in the linker. The build defines
// IFDD_HAVE_V3 and IFDD_HAVE_V4 for the sets the compiler can produce.
#pragma once

// Internal linkage and forced inlining: a header function compiled for AVX-512 must never be the copy that the linker
// keeps for the base set.
#define IFDD_INLINE static inline __attribute__((always_inline))

#if defined(IFDD_HAVE_V3)
#define IFDD_IF_V3(...) __VA_ARGS__
#else
#define IFDD_IF_V3(...)
#endif
#if defined(IFDD_HAVE_V4)
#define IFDD_IF_V4(...) __VA_ARGS__
#else
#define IFDD_IF_V4(...)
#endif

// Whether the x86-64-v4 copy of the kernels has matrix tiles (AMX): the compiler must know their instructions, and we
// know how Linux grants them.
#if defined(IFDD_HAVE_V4) && defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define IFDD_HAVE_TILES 1
#endif

// Repeats a declaration in the namespace of every set of this build.
#define IFDD_DECLARE_PER_ISA(...)       \
  namespace base {                      \
  __VA_ARGS__                           \
  }                                     \
  IFDD_IF_V3(namespace v3{__VA_ARGS__}) \
  IFDD_IF_V4(namespace v4{__VA_ARGS__})

// The function `name` of the set in use: IFDD_SELECT(forward<float>)(...).
#define IFDD_SELECT(...)                                                          \
  (IFDD_IF_V4(::ifdd::active_isa() == ::ifdd::Isa::v4 ? &v4::__VA_ARGS__ :)       \
       IFDD_IF_V3(::ifdd::active_isa() >= ::ifdd::Isa::v3 ? &v3::__VA_ARGS__ :) & \
   base::__VA_ARGS__)

namespace ifdd {

enum class Isa { base = 0, v3 = 1, v4 = 2 };

// "x86-64", "x86-64-v3", "x86-64-v4", "aarch64" or "generic".
const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_supported(Isa isa);

// The best compiled set this machine can run, or a lower one named by the environment variable IFDD_CPU_ISA (read
// once, at first use). A name that is unknown or out of reach does not raise the set: the best runnable one is used,
// and build_info() shows which.
Isa active_isa();

// How bfloat16 products that can use matrix tiles (AMX) are computed: not by tiles, by a stand-in in plain C++, or by
// the CPU's.
enum class MatrixTiles { off, emulated, used };

// The CPU's tiles if the set is x86-64-v4 and was not named by IFDD_CPU_ISA, the CPU has them, and the system lets this
// process use them. The environment variable IFDD_CPU_TILES (read once, at first use) turns them off ("off") or, for
// tests, puts the stand-in in their place on any CPU and set ("emulated"). Other values are ignored, and
// matrix_tiles_text() says so.
MatrixTiles matrix_tiles();
// The choice and its reason, such as "off (this CPU has none)".
const char* matrix_tiles_text();

}  // namespace ifdd
