// Sixteen lanes of the accumulation type in registers: the unit of the loops that the compiler's vectoriser does not
// block well on its own. The lane count is the same on every instruction set, and so is the order of additions.
#pragma once

#include "ifdd/scalar.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

// Rows of elements to the accumulation type and back. Halves go through the conversion instructions where the set has
// them: the integer arithmetic of scalar.h costs twenty instructions a vector.
template <class T>
IFDD_INLINE void widen(const T* __restrict__ in, int64_t count, acc_t<T>* __restrict__ out) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) out[j] = load(in + j);
}

template <class T>
IFDD_INLINE void narrow(const acc_t<T>* __restrict__ in, int64_t count, T* __restrict__ out) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) store(out + j, in[j]);
}

#if defined(__F16C__)
IFDD_INLINE void widen(const fp16* __restrict__ in, int64_t count, float* __restrict__ out) {
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; j + 16 <= count; j += 16) {
    // The masked forms with all lanes set: the plain ones read an undefined register, which GCC 12 warns of.
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + j));
    _mm512_storeu_ps(out + j, _mm512_maskz_cvtph_ps(0xffff, halves));
  }
#endif
  for (; j + 8 <= count; j += 8) {
    _mm256_storeu_ps(out + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + j))));
  }
  for (; j < count; ++j) out[j] = load(in + j);
}

IFDD_INLINE void narrow(const float* __restrict__ in, int64_t count, fp16* __restrict__ out) {
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; j + 16 <= count; j += 16) {
    const __m256i halves =
        _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(in + j), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), halves);
  }
#endif
  for (; j + 8 <= count; j += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(in + j), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), halves);
  }
  for (; j < count; ++j) store(out + j, in[j]);
}
#endif

}  // namespace ifdd
