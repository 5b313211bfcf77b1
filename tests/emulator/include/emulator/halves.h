// The 16-bit float types of CUDA and their conversions. They have no arithmetic: kernels compute in float.
#pragma once

#include "ifdd/scalar.h"

struct __half {
  ifdd::fp16 value;
};
struct __nv_bfloat16 {
  ifdd::bf16 value;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __half2float(__half from) { return ifdd::load(&from.value); }
inline float __bfloat162float(__nv_bfloat16 from) { return ifdd::load(&from.value); }

inline __half __float2half_rn(float from) {
  __half to;
  ifdd::store(&to.value, from);
  return to;
}

inline __nv_bfloat16 __float2bfloat16_rn(float from) {
  __nv_bfloat16 to;
  ifdd::store(&to.value, from);
  return to;
}

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
