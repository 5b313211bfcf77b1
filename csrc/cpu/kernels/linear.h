// Kernels of linear, free of torch: what stands before and after its products in float32, which are PyTorch's.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// widen_all: `count` elements in float32.
// round_all: `count` elements in T.
// finish: rows of float32 sums, with a bias added, rounded to T.
// add: sum += in, elementwise.
// add_rows: sum[j] += in[r][j] over the rows r, for the columns [begin, end).
IFDD_DECLARE_PER_ISA(template <class T> void widen_all(const T* in, int64_t count, float* out);
                     template <class T> void round_all(const float* in, int64_t count, T* out); template <class T>
                     void finish(const float* in, int64_t rows, int64_t columns, const float* bias, T* out);
                     void add(const float* in, int64_t count, float* sum);
                     void add_rows(const float* in, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                                   float* sum);)

}  // namespace ifdd::cpu
