// A GPU of one block: runs the threads of each block of a launch as fibers, switching only where they wait for each
// other, in an order that a seed chooses. See tests/emulator/README.md for what it catches and what it does not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace emulator {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

// What a kernel did that a GPU would not allow or leaves undefined.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A place in a kernel's source.
struct Site {
  const char* what;
  const char* file;
  int line;
};

struct Settings {
  // 0 runs warps and lanes in ascending order, 1 in descending order, each as far ahead as the barriers allow; higher
  // even seeds do so in a random order, odd ones pick a random thread at every switch.
  uint64_t seed = 0;
  int multiprocessors = 4;
  int shared_bytes_per_block = 99 * 1024;  // sm_86 and sm_89; 163 on sm_80, 227 on sm_90
  bool list_only = false;                  // launches are written down instead of run
};

Settings& settings();

// Runs body, a call of the kernel, once per thread of every block. Throws Error.
void launch(const void* kernel, Dim grid, Dim block, size_t shared_bytes, const std::function<void()>& body);

// Lets a kernel be launched with that much dynamic shared memory. Throws Error where the device has less.
void allow_shared_bytes(const void* kernel, size_t bytes);

// --- called by the threads of a kernel ---

struct Position {
  Dim thread, block, block_size, grid_size;
  int lane;
};

const Position& position();

[[noreturn]] void fail(const Site& site, const std::string& message);
// Fails where an address is not a multiple of the size of the access.
void check_alignment(const Site& site, const void* address, size_t bytes);

// Fails where an address lies in shared memory.
void check_global(const Site& site, const void* address);

// Where memory lies: what a kernel has in shared memory; the thread's own (its stack, built-in variables), which on a
// GPU are registers; everything else.
enum class Space { shared, own, global };
Space space_of(const void* address);
// The number of the running thread in its block, or -1 outside of kernels.
int current_thread();

// Waits for all threads of the block that have not ended; returns how many passed a true value.
int block_barrier(const Site& site, bool value = false);

// Orders the memory accesses around it against those around other fences.
void fence();

// Waits for the lanes of a mask that have not ended; the last one to come calls action(records, lanes) with the record
// of each lane that came. `lanes` has their bits. Does not order memory accesses.
using Action = void (*)(void* const* records, unsigned lanes);
void warp_meet(const Site& site, unsigned mask, void* record, Action action);

// The same, and orders memory accesses.
void warp_barrier(const Site& site, unsigned mask);

// Shared memory of the block: one object per tag; the dynamic part. All bytes 0xff at first: NaN in every float type.
void* static_shared(const void* tag, size_t bytes, size_t alignment);
unsigned char* dynamic_shared();

// Asynchronous copies: the destination is NaN until the group is waited for.
void copy_async(const Site& site, void* shared, const void* data, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);

}  // namespace emulator
