// Working memory of the kernels, on a cache line: a vector load that crosses one costs two. With weights on 16 bytes,
// all that new and std::vector promise, the tokenizer took 36 or 50 us for the same frames, as they happened to lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace ifdd::cpu {

constexpr std::align_val_t kCacheLine{64};

// How PyTorch says it.
constexpr const char* kOutOfMemory = "DefaultCPUAllocator: can't allocate memory";

// Memory from a cache line on, of `count` elements of T.
template <class T>
T* line_memory(std::size_t count) {
  void* const memory = ::operator new(count * sizeof(T), kCacheLine, std::nothrow);
  if (memory == nullptr) {
    throw std::runtime_error(std::string(kOutOfMemory) + ": you tried to allocate " +
                             std::to_string(count * sizeof(T)) + " bytes.");
  }
  return static_cast<T*>(memory);
}

// Uninitialised: for what a kernel writes before it reads.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : begin_(line_memory<A>(static_cast<size_t>(count))) {}
  ~Scratch() { ::operator delete(begin_, kCacheLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* get() const { return begin_; }

 private:
  A* begin_;
};

template <class T>
struct LineAllocator {
  using value_type = T;

  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(std::size_t count) { return line_memory<T>(count); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kCacheLine); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};

// Zeros at first.
template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

}  // namespace ifdd::cpu
