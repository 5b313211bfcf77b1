// Vector loops and reductions whose result does not depend on vector width, thread count or memory alignment.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ifdd/isa.h"

namespace ifdd {

// Partial sums of a reduction. Fixed, so that every instruction set adds in the same order; wide enough for four
// independent accumulators of the widest set, which hides the latency of the additions.
constexpr int kLanes = 64;

template <class A>
struct LaneSum {
  A lane[kLanes] = {};
};

// Adds the lanes as a tree; destroys them.
template <class A>
IFDD_INLINE A total(LaneSum<A>& sum) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int l = 0; l < half; ++l) sum.lane[l] += sum.lane[l + half];
  }
  return sum.lane[0];
}

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

// body(j) for j = 0..count-1, independent of each other.
template <class Body>
IFDD_INLINE void for_each(int64_t count, const Body& body) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) body(j);
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

}  // namespace ifdd
