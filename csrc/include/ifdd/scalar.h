// Element types of the kernels and their conversions to the type they accumulate in. No torch, no library calls: the
// conversions are integer arithmetic without branches, so loops over them vectorise on every instruction set.
#pragma once

#include <cstdint>

#include "ifdd/accumulate.h"
#include "ifdd/isa.h"

namespace ifdd {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

IFDD_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

IFDD_INLINE float bits_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

IFDD_INLINE float load(const float* p) { return *p; }
IFDD_INLINE double load(const double* p) { return *p; }
IFDD_INLINE float load(const bf16* p) { return bits_float(static_cast<uint32_t>(p->bits) << 16); }

IFDD_INLINE float load(const fp16* p) {
  const uint32_t magnitude = p->bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000u) << 16;
  const uint32_t shifted = magnitude << 13;
  // The exponent bias grows by 112. A subnormal half is read as 2^-14 (1 + m) and 2^-14 taken away again: exact, and it
  // never forms a subnormal float, which a flush-to-zero mode would lose.
  const uint32_t normal = shifted + (112u << 23);
  const uint32_t subnormal = float_bits(bits_float(shifted + (113u << 23)) - bits_float(113u << 23));
  const uint32_t special = shifted | 0x7f800000u;
  const uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
  return bits_float(sign | (magnitude >= 0x7c00u ? special : finite));
}

// Stores round to nearest, ties to even.
IFDD_INLINE void store(float* p, float value) { *p = value; }
IFDD_INLINE void store(double* p, double value) { *p = value; }

IFDD_INLINE void store(bf16* p, float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

IFDD_INLINE void store(fp16* p, float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rebased = magnitude - (112u << 23);
  const uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  // 0.5f has the spacing 2^-24 of subnormal halves, so the addition itself rounds correctly.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  p->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace ifdd
