#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(IFDD_EMULATOR_RACES)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

char* new_stack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page, PROT_NONE);
  return static_cast<char*>(memory) + page;
}

void free_stack(char* stack) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(stack - page, page + kStackBytes);
}

}  // namespace

#if defined(__x86_64__)
// Saves the registers a callee must keep and the stack pointer, and takes those of another context. swapcontext would
// do the same with two system calls, which makes kernels fifty times slower here.
asm(R"(
.text
.globl ifdd_emulator_switch
.hidden ifdd_emulator_switch
.type ifdd_emulator_switch, @function
ifdd_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ifdd_emulator_switch, .-ifdd_emulator_switch
)");
extern "C" void ifdd_emulator_switch(void** save, void* next);

namespace {
// begin() takes its fiber from a callee-saved register, since nothing calls it.
extern "C" void ifdd_emulator_begin();
asm(R"(
.text
.globl ifdd_emulator_begin
.hidden ifdd_emulator_begin
.type ifdd_emulator_begin, @function
ifdd_emulator_begin:
  movq %rbx, %rdi
  call *%r12
  ud2
.size ifdd_emulator_begin, .-ifdd_emulator_begin
)");

void* first_context(char* stack, void (*begin)(Fiber*), Fiber* fiber) {
  auto* top = reinterpret_cast<void**>(stack + kStackBytes);  // page-aligned, hence 16-byte aligned
  *--top = nullptr;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(ifdd_emulator_begin);  // returned to with the stack as a call would have it
  *--top = nullptr;                                       // rbp
  *--top = fiber;                                         // rbx
  *--top = reinterpret_cast<void*>(begin);                // r12
  for (int i = 0; i < 3; ++i) *--top = nullptr;           // r13, r14, r15
  return top;
}

void switch_context(void** save, void* next) { ifdd_emulator_switch(save, next); }
}  // namespace
#else
namespace {
void* first_context(char* stack, void (*begin)(Fiber*), Fiber* fiber) {
  auto* context = new ucontext_t;  // lives as long as the process, as its fiber's stack does in practice
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, reinterpret_cast<void (*)()>(begin), 1, fiber);
  return context;
}

void switch_context(void** save, void* next) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(next));
}
}  // namespace
#endif

bool Fiber::owns(const void* address) const {
  const auto* byte = static_cast<const char*>(address);
  return stack_ != nullptr && byte >= stack_ && byte < stack_ + kStackBytes;
}

Fiber::~Fiber() {
#if defined(IFDD_EMULATOR_RACES)
  if (race_context_ != nullptr) __tsan_destroy_fiber(race_context_);
#endif
  if (stack_ != nullptr) free_stack(stack_);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
#if defined(IFDD_EMULATOR_RACES)
  // Two threads on one stack, one after the other, would look like a race for it.
  if (stack_ != nullptr) free_stack(stack_);
  stack_ = nullptr;
#endif
  if (stack_ == nullptr) stack_ = new_stack();
  entry_ = entry;
  argument_ = argument;
  pointer_ = first_context(stack_, &Fiber::begin, this);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);  // of a fiber that was given up in the middle
  fake_stack_ = nullptr;
#endif
#if defined(IFDD_EMULATOR_RACES)
  if (race_context_ != nullptr) __tsan_destroy_fiber(race_context_);
  race_context_ = __tsan_create_fiber(0);
#endif
}

void Fiber::begin(Fiber* fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &fiber->caller_stack_, &fiber->caller_stack_size_);
#endif
  fiber->entry_(fiber->argument_);
  std::abort();  // entry_ ends with finish()
}

void Fiber::resume() {
#if defined(IFDD_EMULATOR_RACES)
  caller_race_context_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_context_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&caller_fake_stack_, stack_, kStackBytes);
#endif
  switch_context(&caller_, pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(caller_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(IFDD_EMULATOR_RACES)
  __tsan_switch_to_fiber(caller_race_context_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_stack_size_);
#endif
  switch_context(&pointer_, caller_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_size_);
#endif
}

void Fiber::finish() {
#if defined(IFDD_EMULATOR_RACES)
  __tsan_switch_to_fiber(caller_race_context_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, caller_stack_, caller_stack_size_);  // nullptr: it does not come back
#endif
  switch_context(&pointer_, caller_);
  std::abort();
}

namespace race {
#if defined(IFDD_EMULATOR_RACES)
void release(void* object) { __tsan_release(object); }
void acquire(void* object) { __tsan_acquire(object); }
void* enter() {
  void* before = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(__tsan_create_fiber(0), __tsan_switch_to_fiber_no_sync);
  return before;
}
void leave(void* before) {
  void* own = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(before, __tsan_switch_to_fiber_no_sync);
  __tsan_destroy_fiber(own);
}
#else
void release(void*) {}
void acquire(void*) {}
void* enter() { return nullptr; }
void leave(void*) {}
#endif
}  // namespace race

}  // namespace emulator
