// Cooperative threads with stacks of their own, known to the address and thread sanitizers.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepares the fiber to run entry(argument), which must end with finish(). What it ran before is forgotten.
  void prepare(void (*entry)(void*), void* argument);
  // Runs it until it suspends or finishes. Called outside of any fiber.
  void resume();
  // Back to the caller of resume().
  void suspend();
  // Whether an address lies in its stack.
  bool owns(const void* address) const;
  // The last thing a fiber does.
  [[noreturn]] void finish();

 private:
  static void begin(Fiber* fiber);

  char* stack_ = nullptr;  // lowest usable byte; a guard page lies below
  void* pointer_ = nullptr;
  void* caller_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // Sanitizer state.
  void* race_context_ = nullptr;
  void* caller_race_context_ = nullptr;
  void* fake_stack_ = nullptr;
  void* caller_fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_stack_size_ = 0;
};

// What the thread sanitizer is told; nothing without it. `enter` and `leave` give the code between them an identity of
// its own, unordered with everything else until it acquires what others have released.
namespace race {
void release(void* object);
void acquire(void* object);
void* enter();
void leave(void* before);
}  // namespace race

}  // namespace emulator
