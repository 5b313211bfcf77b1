// Kernels of linear, free of torch: what stands before and after its products in float32, which are PyTorch's.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// widen_all: `count` elements in float32.
// round_all: `count` elements in T.
// finish: rows of float32 sums, with a bias added, rounded to T.
// widen_and_sum: rows in float32, and their sum.
IFDD_DECLARE_PER_ISA(template <class T> void widen_all(const T* in, int64_t count, float* out);
                     template <class T> void round_all(const float* in, int64_t count, T* out); template <class T>
                     void finish(const float* in, int64_t rows, int64_t columns, const float* bias, T* out);
                     template <class T>
                     void widen_and_sum(const T* in, int64_t rows, int64_t columns, float* out, float* sum);)

}  // namespace ifdd::cpu
