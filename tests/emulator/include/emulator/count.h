// Builds that count what a warp's loads and stores touch (IFDD_EMULATOR_COUNT). Kernels are then compiled as for the
// thread sanitizer, which calls a function at every access of memory; these functions are the emulator's own
// (count.cpp). Accesses through the functions of hardware.h say themselves how wide they are.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef IFDD_EMULATOR_COUNT
// A function that counts its accesses itself, once for each place it is called from; one that is no part of a kernel.
#define IFDD_EMULATOR_ACCESS __attribute__((noinline, no_sanitize("thread")))
#define IFDD_EMULATOR_UNCOUNTED __attribute__((no_sanitize("thread")))
#define IFDD_EMULATOR_COUNTED(kind, address, bytes) \
  ::emulator::count_access(::emulator::Access::kind, address, bytes, __builtin_return_address(0))
#define IFDD_EMULATOR_KERNEL_BEGINS() ::emulator::count_kernel()
#else
#define IFDD_EMULATOR_ACCESS
#define IFDD_EMULATOR_UNCOUNTED
#define IFDD_EMULATOR_COUNTED(kind, address, bytes) static_cast<void>(0)
#define IFDD_EMULATOR_KERNEL_BEGINS() static_cast<void>(0)
#endif

namespace emulator {

enum class Access { load, store };

// Called by a thread where its kernel begins, so that what calls the kernel is not counted.
void count_kernel();
// Called by a thread of a kernel; `place` is where in the code.
void count_access(Access kind, const void* address, size_t bytes, const void* place);

// Called by the machine: at the begin and the end of launches and blocks, and where a thread has met all others of its
// block or warp.
void count_launch(int64_t kernel);
void count_block(size_t threads);
void count_meeting(size_t thread);
void count_block_end();

}  // namespace emulator
