// Exponential and normal distribution for vector loops: no branches, no library calls in float.
#pragma once

#include "ifdd/scalar.h"

namespace ifdd {

// e^y for y <= 0, relative error below 2 roundings; 0 below the smallest normal float.
IFDD_INLINE float exp_nonpositive(float y) {
  // y = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the nearest integer n and leaves it in the low bits.
  const float inside = y > -87.0f ? y : -87.0f;
  const float shifted = inside * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: the first times n is exact
  // Least maximum relative error over |r| <= 0.347: 3.1e-9.
  float p = 1.3814465e-3f;
  p = p * r + 8.368781e-3f;
  p = p * r + 4.1668393e-2f;
  p = p * r + 1.666652e-1f;
  p = p * r + 4.9999994e-1f;
  p = p * (r * r) + r + 1.0f;
  const float power = bits_float((float_bits(shifted) << 23) + 0x3f800000u);
  const float value = p * power;
  return y != y ? y : y > -87.0f ? value : 0.0f;
}

IFDD_INLINE double exp_nonpositive(double y) { return __builtin_exp(y); }

template <class A>
struct Normal {
  A cdf;
  A pdf;
};

// Phi(x) and phi(x). With t = |x|, Phi(-t) = e^(-t^2/2) erfcx(t / sqrt 2) / 2 keeps its relative accuracy in the tail,
// where 1 + erf would cancel; the scaled function is smooth, so one polynomial in (t - 3) / (t + 3) covers the line.
// Relative error below 3e-7 for |x| < 2, growing with the rounding of x^2 to 2e-6 at |x| = 13.
IFDD_INLINE Normal<float> normal(float x) {
  const float t = x < 0 ? -x : x;
  const float e = exp_nonpositive(-0.5f * (t * t));
  const float v = 1.0f - 6.0f / (t + 3.0f);
  float g = 5.36733569e-5f;
  g = g * v + 1.15545321e-4f;
  g = g * v - 3.39486329e-4f;
  g = g * v - 9.83759761e-4f;
  g = g * v + 2.90455669e-3f;
  g = g * v + 6.13207091e-3f;
  g = g * v - 4.62132916e-2f;
  g = g * v + 1.23225033e-1f;
  g = g * v - 2.06402615e-1f;
  g = g * v + 1.21513948e-1f;
  const float tail = e * g;
  return {x < 0 ? tail : 1.0f - tail, e * 0.398942280f};
}

IFDD_INLINE Normal<double> normal(double x) {
  return {0.5 * __builtin_erfc(-x * 0.70710678118654752440), __builtin_exp(-0.5 * x * x) * 0.39894228040143267794};
}

}  // namespace ifdd
