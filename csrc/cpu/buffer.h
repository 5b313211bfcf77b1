// Working memory of the kernels, on a cache line: a vector load that crosses one costs two. With weights on 16 bytes,
// all that new and std::vector promise, the tokenizer took 36 or 50 us for the same frames, as they happened to lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace ifdd::cpu {

constexpr std::align_val_t kCacheLine{64};

// Uninitialised: for what a kernel writes before it reads.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : begin_(static_cast<A*>(::operator new(static_cast<size_t>(count) * sizeof(A), kCacheLine))) {}
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

  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kCacheLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kCacheLine); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
  friend bool operator!=(const LineAllocator&, const LineAllocator&) { return false; }
};

// Zeros at first.
template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

}  // namespace ifdd::cpu
