// The vector layer of the CPU kernels: vectors of the accumulation type in the width of the instruction set in use,
// their memory access, conversions and reductions. vector/math.h has the functions, vector/loops.h the loops over rows.
// Include the three in kernel files only (csrc/cpu/kernels): they live in the namespace of the set.
//
// The bits of a result. They depend neither on the number of threads nor on strides and addresses. They may depend on
// the instruction set, for two reasons only:
//   - from x86-64-v3 on a product and the addition behind it are rounded once, in the base set twice;
//   - a sum in a Vec has kWidth partial sums, so its order is the width's. Lanes and LaneSum have the same partial sums
//     on every set, and every reduction adds halves: lane l and lane l + n/2, until one is left.
// Everything else is computed lane by lane. docs/kernels/README.md says which op is of which kind.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "ifdd/padding.h"
#include "ifdd/scalar.h"

// The only place that asks for the instruction set. Where the width is given, as tests do, it is that of the generic
// code: the order of additions of another set on a machine that lacks it.
#if defined(IFDD_VECTOR_BYTES)
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define IFDD_VECTOR_BYTES 64
#define IFDD_AVX512 1
#elif defined(__AVX2__) && defined(__F16C__)
#define IFDD_VECTOR_BYTES 32
#define IFDD_AVX2 1
#else
#define IFDD_VECTOR_BYTES 16
#endif

#if defined(IFDD_AVX512) || defined(IFDD_AVX2)
#include <immintrin.h>
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define IFDD_SHUFFLE 1
#endif
#endif

namespace ifdd::cpu::IFDD_ISA {

constexpr int kVectorBytes = IFDD_VECTOR_BYTES;

template <class A>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(A));
static_assert(kPad % kWidth<float> == 0);

// N lanes of A in one vector.
template <class A, int N>
struct VectorOf {
  typedef A type __attribute__((vector_size(N * sizeof(A))));
};
template <class A>
using Vec = typename VectorOf<A, kWidth<A>>::type;
// The type of a vector's lanes.
template <class V>
using LaneOf = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
// Unsigned integers of the size of A: the bits of a Vec<A>.
template <class A>
using Bits = Vec<std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>>;
// The bits of as many 16-bit elements as a Vec<float> has lanes.
using Halves = typename VectorOf<uint16_t, kWidth<float>>::type;

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

// Memory. Addresses need no alignment. Elements of type T are read as acc_t<T> and written from it, rounded to nearest,
// ties to even; a NaN stays one.

template <class T>
IFDD_INLINE Vec<acc_t<T>> read(const T* p) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    Vec<A> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  } else {
    Halves bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    if constexpr (std::is_same_v<T, bf16>) {
      return bits_as<Vec<A>>(__builtin_convertvector(bits, Bits<A>) << 16);
    } else {
#if defined(IFDD_AVX512)
      return bits_as<Vec<A>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
#elif defined(IFDD_AVX2)
      return bits_as<Vec<A>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
#else
      Vec<A> v;
      for (int l = 0; l < kWidth<A>; ++l) v[l] = load(p + l);
      return v;
#endif
    }
  }
}

template <class T>
IFDD_INLINE void write(T* p, Vec<acc_t<T>> v) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    __builtin_memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, bf16>) {
    const Bits<A> bits = bits_as<Bits<A>>(v);
    const Bits<A> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Bits<A> nan = bits_as<Bits<A>>((bits & 0x7fffffffu) > 0x7f800000u);
    const Halves halves = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Halves);
    __builtin_memcpy(p, &halves, sizeof halves);
  } else {
#if defined(IFDD_AVX512)
    const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &halves, sizeof halves);
#elif defined(IFDD_AVX2)
    const __m128i halves = _mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &halves, sizeof halves);
#else
    for (int l = 0; l < kWidth<A>; ++l) store(p + l, static_cast<float>(v[l]));
#endif
  }
}

// Rounded to T and back.
template <class T>
IFDD_INLINE Vec<acc_t<T>> rounded(Vec<acc_t<T>> v) {
  T lanes[kWidth<acc_t<T>>];
  write(lanes, v);
  return read(lanes);
}

// The first `count` lanes, zeros in the others.
template <class V>
IFDD_INLINE V first_lanes(V v, int64_t count) {
  using A = LaneOf<V>;
  constexpr int width = kWidth<A>;
  V lane;
#pragma GCC unroll 16
  for (int l = 0; l < width; ++l) lane[l] = l;
  return lane < static_cast<A>(count < width ? count : width) ? v : V{};
}

// How much of a vector belongs to a row of d channels, ceil(d / kWidth<A>) vectors. Code is written once, as a template
// of the two. A partial read fills the other lanes with zeros, a partial write leaves memory behind the row alone.
struct Whole {
  template <class T>
  __attribute__((always_inline)) Vec<acc_t<T>> read(const T* p) const {
    return IFDD_ISA::read(p);
  }
  template <class T>
  __attribute__((always_inline)) void write(T* p, Vec<acc_t<T>> v) const {
    IFDD_ISA::write(p, v);
  }
  template <class V>
  __attribute__((always_inline)) V keep(V v) const {
    return v;
  }
};

struct Partial {
  int count;

  template <class T>
  __attribute__((always_inline)) Vec<acc_t<T>> read(const T* p) const {
#if defined(IFDD_AVX512)
    const uint32_t mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 8) {
      return bits_as<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p));
    } else if constexpr (sizeof(T) == 4) {
      return bits_as<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p));
    } else {
      const __m256i lanes = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p);
      return IFDD_ISA::read(reinterpret_cast<const T*>(&lanes));
    }
#else
    T lanes[kWidth<acc_t<T>>] = {};
    copy(p, lanes, count);
    return IFDD_ISA::read(lanes);
#endif
  }
  template <class T>
  __attribute__((always_inline)) void write(T* p, Vec<acc_t<T>> v) const {
#if defined(IFDD_AVX512)
    const uint32_t mask = (1u << count) - 1u;
    if constexpr (sizeof(T) == 8) {
      _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), bits_as<__m512d>(v));
    } else if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), bits_as<__m512>(v));
    } else {
      __m256i lanes;
      IFDD_ISA::write(reinterpret_cast<T*>(&lanes), v);
      _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), lanes);
    }
#else
    T lanes[kWidth<acc_t<T>>];
    IFDD_ISA::write(lanes, v);
    copy(lanes, p, count);
#endif
  }
  // v with zeros behind the row.
  template <class V>
  __attribute__((always_inline)) V keep(V v) const {
    return first_lanes(v, count);
  }

 private:
  // Out of line: inlined into every load of a tile it would make most of the library's code.
  template <class T>
  static __attribute__((noinline)) void copy(const T* from, T* to, int count) {
    for (int l = 0; l < count; ++l) to[l] = from[l];
  }
};

// Lanes [first, first + N / 2) of N. Through shuffles where the compiler has them: an address would pin the vector to
// memory.
template <class A, int N, int first, int... lane>
IFDD_INLINE typename VectorOf<A, N / 2>::type half_of(typename VectorOf<A, N>::type v,
                                                      std::integer_sequence<int, lane...>) {
#if defined(IFDD_SHUFFLE)
  return __builtin_shufflevector(v, v, (first + lane)...);
#else
  typename VectorOf<A, N / 2>::type half;
  __builtin_memcpy(&half, reinterpret_cast<const A*>(&v) + first, sizeof half);
  return half;
#endif
}

// combine(x, y) of halves, as vectors and at last as numbers.
template <class A, int N, class Combine>
IFDD_INLINE A reduce(typename VectorOf<A, N>::type v, const Combine& combine) {
  if constexpr (N == 2) {
    return combine(v[0], v[1]);
  } else {
    const auto lanes = std::make_integer_sequence<int, N / 2>();
    return reduce<A, N / 2>(combine(half_of<A, N, 0>(v, lanes), half_of<A, N, N / 2>(v, lanes)), combine);
  }
}

template <class V>
IFDD_INLINE LaneOf<V> total(V v) {
  using A = LaneOf<V>;
  return reduce<A, kWidth<A>>(v, [](auto x, auto y) __attribute__((always_inline)) { return x + y; });
}

// Unspecified among NaNs.
template <class V>
IFDD_INLINE LaneOf<V> largest(V v) {
  using A = LaneOf<V>;
  return reduce<A, kWidth<A>>(v, [](auto x, auto y) __attribute__((always_inline)) { return x > y ? x : y; });
}

// N partial sums on every instruction set, in as many vectors as they take.
template <class A, int N>
struct Lanes {
  static constexpr int kParts = N / kWidth<A>;
  static_assert(N % kWidth<A> == 0);
  Vec<A> part[kParts];
};

template <int N, class A>
IFDD_INLINE Lanes<A, N> read_lanes(const A* p) {
  // Vector by vector: a copy of the whole goes through memory where it is wider than a register.
  Lanes<A, N> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < Lanes<A, N>::kParts; ++i) lanes.part[i] = read(p + i * kWidth<A>);
  return lanes;
}

template <class A, int N>
IFDD_INLINE void write_lanes(A* p, const Lanes<A, N>& lanes) {
#pragma GCC unroll 16
  for (int i = 0; i < Lanes<A, N>::kParts; ++i) write(p + i * kWidth<A>, lanes.part[i]);
}

// sum += a * b
template <class A, int N>
IFDD_INLINE void multiply_add(Lanes<A, N>& sum, const Lanes<A, N>& a, const Lanes<A, N>& b) {
#pragma GCC unroll 8
  for (int i = 0; i < Lanes<A, N>::kParts; ++i) sum.part[i] += a.part[i] * b.part[i];
}

// sum += a * b with the same b in every lane
template <class A, int N>
IFDD_INLINE void multiply_add(Lanes<A, N>& sum, const Lanes<A, N>& a, A b) {
#pragma GCC unroll 8
  for (int i = 0; i < Lanes<A, N>::kParts; ++i) sum.part[i] += a.part[i] * b;
}

template <class A, int N>
IFDD_INLINE A total(Lanes<A, N> lanes) {
#pragma GCC unroll 8
  for (int half = Lanes<A, N>::kParts / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) lanes.part[i] += lanes.part[i + half];
  }
  return total(lanes.part[0]);
}

#if defined(IFDD_SHUFFLE)
// Swaps the lanes of a that have bit `step` set with the lanes of b that have not.
template <int step, class V, int... lane>
IFDD_INLINE void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int width = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, (lane & step ? width + lane - step : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? width + lane : lane + step)...);
  a = low;
}

template <int step = 1, class V, int width>
IFDD_INLINE void transpose(V (&row)[width]) {
  if constexpr (step < width) {
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) {
      if ((i & step) == 0) exchange<step>(row[i], row[i + step], std::make_integer_sequence<int, width>());
    }
    transpose<2 * step>(row);
  }
}
#else
template <class V, int width>
IFDD_INLINE void transpose(V (&row)[width]) {
  for (int i = 0; i < width; ++i) {
    for (int l = 0; l < i; ++l) {
      const auto swap = row[i][l];
      row[i][l] = row[l][i];
      row[l][i] = swap;
    }
  }
}
#endif

}  // namespace ifdd::cpu::IFDD_ISA
