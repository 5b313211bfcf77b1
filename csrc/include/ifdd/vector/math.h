// Functions of the kernels. Every number is in the domain; errors are bounds over all of them, on every instruction
// set, in ulps: spacings of floats (or doubles) around the exact value, below 2^-126 those of the subnormal numbers.
// tests/ops/test_vector_layer.py holds the functions to them.
//
//                float              double               at the edges
//   exp          1.25               1.25                 0 where e^x < 2^-126 (2^-1022), inf where it overflows
//   normal cdf   6 + min(x, 0)^2/2  6 + 2 min(x, 0)^2    float: 0 for x < -13.22, subnormal from -12.95 on
//   normal pdf   3 + x^2/2          3 + x^2/2            float: 0 for |x| > 13.22, subnormal from 13.15 on
//   sqrt         0.5                0.5                  the processor's: -0 of -0, NaN below 0
//   log          1                  1                    the C library's: -inf of 0, NaN below 0
//   tanh         -                  2                    the C library's
//
// NaN gives NaN. The last three take one number.
#pragma once

#include "ifdd/vector/vector.h"

namespace ifdd::cpu::IFDD_ISA {

// What exp takes: 1.5 * 2^mantissa rounds what is added to it to an integer, which is left in its low bits; ln 2 is in
// two parts, the first short enough for exact products with an exponent; between `lowest` and `highest`, both included,
// results are normal and finite; (e^r - 1 - r) / r^2 is a polynomial, its coefficients from the lowest on.
template <class A>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float round = 12582912.0f, log2e = 1.44269504f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -87.3365402f, highest = 88.7228317f;
  static constexpr int mantissa = 23;
  // Least maximum relative error of e^r over |r| <= ln 2 / 2: 3.1e-9.
  static constexpr float coefficient[] = {4.9999994e-1f, 1.666652e-1f, 4.1668393e-2f, 8.368781e-3f, 1.3814465e-3f};
};
template <>
struct Exponential<double> {
  static constexpr double round = 6755399441055744.0, log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double lowest = -708.396418532264, highest = 709.782712893383973096;
  static constexpr int mantissa = 52;
  // 1 / k!, k = 2..13: the first term left out is below a tenth of an ulp.
  static constexpr double coefficient[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                                           1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                                           1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
};

// x = n ln 2 + r, |r| <= ln 2 / 2: e^r between 1 / sqrt 2 and sqrt 2, and n added to its exponent.
template <class V>
IFDD_INLINE V exp(V x) {
  using A = LaneOf<V>;
  using E = Exponential<A>;
  const V shifted = x * E::log2e + E::round;
  const V n = shifted - E::round;
  const V r = (x - n * E::ln2_high) - n * E::ln2_low;
  constexpr int last = sizeof E::coefficient / sizeof(A) - 1;
  V p = broadcast(E::coefficient[last]);
#pragma GCC unroll 16
  for (int i = last - 1; i >= 0; --i) p = p * r + E::coefficient[i];
  p = p * (r * r) + r + A(1);
  const V scaled = bits_as<V>(bits_as<Bits<A>>(p) + (bits_as<Bits<A>>(shifted) << E::mantissa));
  const V value = x < E::lowest ? V{} : scaled;
  return x <= E::highest ? value : x + static_cast<A>(__builtin_inf());  // inf, or NaN
}

template <class V>
struct Normal {
  V cdf;
  V pdf;
};

// Phi(x) and phi(x) of the normal distribution; GELU(x) = x Phi(x). With t = |x| and u = t / sqrt 2,
// Phi(-t) = e^(-u^2) erfcx(u) / 2 keeps its relative accuracy in the tail, where 1 + erf would cancel; erfcx is smooth,
// so one polynomial in (t - 3) / (t + 3) covers the line. The part of an error that grows with x^2 is the rounding of
// the exponent.
template <class V>
IFDD_INLINE Normal<V> normal(V x) {
  using A = LaneOf<V>;
  const V e = exp(x * x * A(-0.5));
  if constexpr (sizeof(A) == 8) {
    V cdf;
    for (int l = 0; l < kWidth<A>; ++l) cdf[l] = 0.5 * __builtin_erfc(-x[l] * 0.70710678118654752440);
    return {cdf, e * 0.39894228040143267794};
  } else {
    const V t = x < 0 ? -x : x;
    const V v = 1.0f - 6.0f / (t + 3.0f);
    V g = broadcast(5.36733569e-5f);
    g = g * v + 1.15545321e-4f;
    g = g * v - 3.39486329e-4f;
    g = g * v - 9.83759761e-4f;
    g = g * v + 2.90455669e-3f;
    g = g * v + 6.13207091e-3f;
    g = g * v - 4.62132916e-2f;
    g = g * v + 1.23225033e-1f;
    g = g * v - 2.06402615e-1f;
    g = g * v + 1.21513948e-1f;
    const V tail = e * g;
    return {x < 0 ? tail : 1.0f - tail, e * 0.398942280f};
  }
}

template <class A>
IFDD_INLINE A sqrt(A x) {
  if constexpr (sizeof(A) == 8) {
    return __builtin_sqrt(x);
  } else {
    return __builtin_sqrtf(x);
  }
}

template <class A>
IFDD_INLINE A log(A x) {
  if constexpr (sizeof(A) == 8) {
    return __builtin_log(x);
  } else {
    return __builtin_logf(x);
  }
}

IFDD_INLINE double tanh(double x) { return __builtin_tanh(x); }

}  // namespace ifdd::cpu::IFDD_ISA
