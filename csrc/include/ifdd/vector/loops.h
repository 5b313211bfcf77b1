// Loops over rows: by vectors, or by elements where the compiler vectorises them well.
#pragma once

#include "ifdd/vector/vector.h"

namespace ifdd::cpu::IFDD_ISA {

// body(c, lanes) for the first channel c of every vector of a row of d channels.
template <class A, class Body>
IFDD_INLINE void for_vectors(int64_t d, const Body& body) {
  int64_t c = 0;
  for (; c + kWidth<A> <= d; c += kWidth<A>) body(c, Whole{});
  if (c < d) body(c, Partial{static_cast<int>(d - c)});
}

// A row in the accumulation type, and back.
template <class T>
IFDD_INLINE void widen(const T* in, int64_t count, acc_t<T>* out) {
  for_vectors<acc_t<T>>(
      count, [&](int64_t c, auto lanes) __attribute__((always_inline)) { lanes.write(out + c, lanes.read(in + c)); });
}

template <class T>
IFDD_INLINE void narrow(const acc_t<T>* in, int64_t count, T* out) {
  for_vectors<acc_t<T>>(
      count, [&](int64_t c, auto lanes) __attribute__((always_inline)) { lanes.write(out + c, lanes.read(in + c)); });
}

// body(j) for j = 0..count-1, independent of each other.
template <class Body>
IFDD_INLINE void for_each(int64_t count, const Body& body) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) body(j);
}

// Partial sums of a reduction by elements; wide enough for four independent accumulators of the widest set, which hides
// the latency of the additions.
constexpr int kLanes = 64;

template <class A>
struct LaneSum {
  A lane[kLanes] = {};
};

// body(j, l) for j = 0..count-1, l = j mod kLanes. The body may touch element j of its arrays and lane l of its sums.
template <class Body>
IFDD_INLINE void for_lanes(int64_t count, const Body& body) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) body(j + l, l);
  }
  const int rest = static_cast<int>(count - j);
#pragma omp simd
  for (int l = 0; l < rest; ++l) body(j + l, l);
}

template <class A>
IFDD_INLINE A total(const LaneSum<A>& sum) {
  return total(read_lanes<kLanes>(sum.lane));
}

// Calls body with the compile-time number count, 1 <= count <= limit.
template <int limit, class Body>
IFDD_INLINE void with_count(int64_t count, const Body& body) {
  if constexpr (limit == 1) {
    body(std::integral_constant<int, 1>{});
  } else {
    if (count == limit) {
      body(std::integral_constant<int, limit>{});
    } else {
      with_count<limit - 1>(count, body);
    }
  }
}

// body(i) for the compile-time numbers i = 0..count-1. Arrays of sums that are indexed with such an i stay in
// registers; indexed by the counter of a loop that the compiler unrolls late, they stay in memory.
template <int count, class Body>
IFDD_INLINE void unrolled(const Body& body) {
  if constexpr (count > 0) {
    unrolled<count - 1>(body);
    body(std::integral_constant<int, count - 1>{});
  }
}

}  // namespace ifdd::cpu::IFDD_ISA
