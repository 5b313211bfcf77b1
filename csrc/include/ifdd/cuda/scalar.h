// Element types of the CUDA kernels and their conversions to the type they accumulate in.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ifdd/accumulate.h"
#include "ifdd/cuda/hardware.h"

namespace ifdd::cuda {

template <class T>
constexpr bool is_16_bit = std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>;

IFDD_DEVICE float widen(float value) { return value; }
IFDD_DEVICE double widen(double value) { return value; }
IFDD_DEVICE float widen(__half value) { return __half2float(value); }
IFDD_DEVICE float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

// Rounds to nearest, ties to even.
template <class T>
IFDD_DEVICE T narrow(acc_t<T> value) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

IFDD_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
IFDD_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// Two 16-bit elements in one register, `low` in the lower half: an mma fragment's format.
template <class T>
IFDD_DEVICE uint32_t pack_pair(float low, float high) {
  static_assert(is_16_bit<T>);
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return read_word<uint32_t>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return read_word<uint32_t>(&pair);
  }
}

template <class T>
IFDD_DEVICE float2 unpack_pair(uint32_t bits) {
  static_assert(is_16_bit<T>);
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(read_word<__half2>(&bits));
  } else {
    return __bfloat1622float2(read_word<__nv_bfloat162>(&bits));
  }
}

}  // namespace ifdd::cuda
