// What the lanes of a warp compute together. Compiled with the emulator and not with a kernel: what lanes pass each
// other is no memory of theirs, so the race detector must not see it.
#pragma once

#include <cstdint>

#include "emulator/machine.h"

namespace emulator {

// The value of a lane of the mask; of one that is not there, or not in the mask, all bits set: NaN.
uint64_t exchange_bits(const Site& site, unsigned mask, uint64_t value, int source);

// One bit per lane that passes true.
unsigned ballot(const Site& site, unsigned mask, bool value);

// --- matrix instructions; each needs all 32 lanes ---

enum class Element { half, bfloat16, tf32 };

// D += A B for a 16 x K matrix A and a K x 8 matrix B in the fragments of mma.sync; K is 16, or 8 for TF32. Products
// are exact; sums are cut off instead of rounded, as the hardware does (warp.cpp).
void mma(const Site& site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element);

struct alignas(16) MatrixRow {
  uint16_t element[8];
};

// ldmatrix.x4, of the rows that the lanes have read.
void load_matrices(const Site& site, uint32_t (&r)[4], const MatrixRow& row, bool transposed);

}  // namespace emulator
