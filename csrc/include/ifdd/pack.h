// Sixteen lanes of the accumulation type in registers: the unit of the loops that the compiler's vectoriser does not
// block well on its own. The lane count is the same on every instruction set, and so is the order of additions.
#pragma once

#include "ifdd/scalar.h"

namespace ifdd {

constexpr int kPack = 16;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class A>
struct Register {};
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(kRegisterBytes)));
  typedef int32_t mask __attribute__((vector_size(kRegisterBytes)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(kRegisterBytes)));
  typedef int64_t mask __attribute__((vector_size(kRegisterBytes)));
};

template <class A>
struct Pack {
  using V = typename Register<A>::type;
  static constexpr int kWidth = kRegisterBytes / sizeof(A);
  static constexpr int kParts = kPack / kWidth;
  V part[kParts];
};

template <class A>
IFDD_INLINE Pack<A> zero_pack() {
  Pack<A> pack;
#pragma GCC unroll 8
  for (int i = 0; i < Pack<A>::kParts; ++i) pack.part[i] = typename Pack<A>::V{};
  return pack;
}

template <class A>
IFDD_INLINE Pack<A> load_pack(const A* p) {
  Pack<A> pack;
  __builtin_memcpy(&pack, p, sizeof pack);
  return pack;
}

template <class A>
IFDD_INLINE void store_pack(A* p, const Pack<A>& pack) {
  __builtin_memcpy(p, &pack, sizeof pack);
}

// acc += a * b
template <class A>
IFDD_INLINE void multiply_add(Pack<A>& acc, const Pack<A>& a, const Pack<A>& b) {
#pragma GCC unroll 8
  for (int i = 0; i < Pack<A>::kParts; ++i) acc.part[i] += a.part[i] * b.part[i];
}

// acc += a * b with the same b in every lane
template <class A>
IFDD_INLINE void multiply_add(Pack<A>& acc, const Pack<A>& a, A b) {
#pragma GCC unroll 8
  for (int i = 0; i < Pack<A>::kParts; ++i) acc.part[i] += a.part[i] * b;
}

// Sum of the sixteen lanes: l + (l + 8), then + 4, + 2, + 1.
template <class A>
IFDD_INLINE A total(Pack<A> pack) {
  using V = typename Pack<A>::V;
  constexpr int width = Pack<A>::kWidth;
#pragma GCC unroll 4
  for (int half = Pack<A>::kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) pack.part[i] += pack.part[i + half];
  }
  V sum = pack.part[0];
#pragma GCC unroll 4
  for (int half = width / 2; half > 0; half /= 2) {
    typename Register<A>::mask rotate;
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) rotate[i] = (i + half) % width;
    sum += __builtin_shuffle(sum, rotate);
  }
  return sum[0];
}

}  // namespace ifdd
