// Rows in memory of our own, padded so that whole vectors of any instruction set may run over their end.
#pragma once

#include <cstdint>

#include "ifdd/isa.h"

namespace ifdd {

// Elements: the lanes of the widest vector of floats, a multiple of those of every other.
constexpr int64_t kPad = 16;
// Of bfloat16 factors for matrix tiles: the terms of a tile, and the rows and columns of two.
constexpr int64_t kTileBlock = 32;

IFDD_INLINE constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
IFDD_INLINE constexpr int64_t padded(int64_t n) { return round_up(n, kPad); }

}  // namespace ifdd
