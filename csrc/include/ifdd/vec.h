// Vectors of the accumulation type in the width of the instruction set in use, for kernels that keep many of them in
// registers. Include it in kernel files only (csrc/cpu/kernels/*.cpp): it lives in the namespace of the set.
//
// A channel row of any length d is ceil(d / kWidth<A>) vectors; the last may be partial. Partial loads fill the other
// lanes with zeros, partial stores leave memory behind the row alone.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "ifdd/scalar.h"

namespace ifdd::cpu::IFDD_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class A>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(A));

template <class A>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VecOf<A>::type;

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

// The same bits as another type of the same size.
template <class To, class From>
IFDD_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class A>
IFDD_INLINE Vec<A> broadcast(A value) {
  return value - Vec<A>{};  // x - 0 is x, for a NaN and for -0 too
}

// A row's element type T is read as acc_t<T> and written from it.
template <class T>
IFDD_INLINE Vec<acc_t<T>> widen(const T* p) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    Vec<A> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  } else {
    Halves bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    if constexpr (std::is_same_v<T, bf16>) {
      return bits_as<Vec<A>>(__builtin_convertvector(bits, Words) << 16);
    } else {
#if defined(__AVX512F__)
      return bits_as<Vec<A>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
#elif defined(__F16C__)
      return bits_as<Vec<A>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
#else
      Vec<A> v;
      for (int l = 0; l < kWidth<A>; ++l) v[l] = load(p + l);
      return v;
#endif
    }
  }
}

// Rounds to nearest, ties to even.
template <class T>
IFDD_INLINE void narrow(T* p, Vec<acc_t<T>> v) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    __builtin_memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, bf16>) {
    const Words bits = bits_as<Words>(v);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words nan = bits_as<Words>((bits & 0x7fffffffu) > 0x7f800000u);
    const Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Halves);
    __builtin_memcpy(p, &halves, sizeof halves);
  } else {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &halves, sizeof halves);
#elif defined(__F16C__)
    const __m128i halves = _mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &halves, sizeof halves);
#else
    for (int l = 0; l < kWidth<A>; ++l) store(p + l, static_cast<float>(v[l]));
#endif
  }
}

// How much of a vector belongs to the row. Code is written once, as a template of the two.
struct Whole {
  template <class T>
  __attribute__((always_inline)) Vec<acc_t<T>> read(const T* p) const {
    return widen(p);
  }
  template <class T>
  __attribute__((always_inline)) void write(T* p, Vec<acc_t<T>> v) const {
    narrow(p, v);
  }
  template <class A>
  __attribute__((always_inline)) Vec<A> keep(Vec<A> v) const {
    return v;
  }
};

struct Partial {
  int count;

  template <class T>
  __attribute__((always_inline)) Vec<acc_t<T>> read(const T* p) const {
#if defined(__AVX512F__)
    const uint32_t mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 8) {
      return bits_as<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
    } else if constexpr (sizeof(T) == 4) {
      return bits_as<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
    } else {
      const __m256i lanes = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
      return widen(reinterpret_cast<const T*>(&lanes));
    }
#else
    T lanes[kWidth<acc_t<T>>] = {};
    copy(p, lanes, count);
    return widen(lanes);
#endif
  }
  template <class T>
  __attribute__((always_inline)) void write(T* p, Vec<acc_t<T>> v) const {
#if defined(__AVX512F__)
    const uint32_t mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 8) {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), bits_as<__m512d>(v));
    } else if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), bits_as<__m512>(v));
    } else {
      __m256i lanes;
      narrow(reinterpret_cast<T*>(&lanes), v);
      _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), lanes);
    }
#else
    T lanes[kWidth<acc_t<T>>];
    narrow(lanes, v);
    copy(lanes, p, count);
#endif
  }
  // v with zeros behind the row.
  template <class A>
  __attribute__((always_inline)) Vec<A> keep(Vec<A> v) const {
    A lanes[kWidth<A>];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (int l = 0; l < kWidth<A>; ++l) lanes[l] = l < count ? lanes[l] : A(0);
    return widen(lanes);
  }

 private:
  // Out of line: inlined into every load of a tile it would make most of the library's code.
  template <class T>
  static __attribute__((noinline)) void copy(const T* from, T* to, int count) {
    for (int l = 0; l < count; ++l) to[l] = from[l];
  }
};

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

// Sum of the lanes, as a tree.
template <class A, int N>
IFDD_INLINE A total_lanes(const void* lanes) {
  if constexpr (N == 1) {
    A value;
    __builtin_memcpy(&value, lanes, sizeof value);
    return value;
  } else {
    typedef A Half __attribute__((vector_size(N / 2 * sizeof(A))));
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof low);
    __builtin_memcpy(&high, static_cast<const char*>(lanes) + sizeof low, sizeof high);
    low += high;
    return total_lanes<A, N / 2>(&low);
  }
}

template <class A>
IFDD_INLINE A total(Vec<A> v) {
  return total_lanes<A, kWidth<A>>(&v);
}

}  // namespace ifdd::cpu::IFDD_ISA
