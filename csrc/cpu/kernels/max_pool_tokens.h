// Kernels of max_pool_tokens, free of torch.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// One axis of the pooling: windows [o * stride - before, o * stride - before + kernel) cut to [0, in).
struct PoolAxis {
  int64_t in, out, stride, kernel, before;
};

struct MaxPool {
  PoolAxis t, y, x;
  int64_t C;
  int64_t in_cells() const { return t.in * y.in * x.in; }
  int64_t out_cells() const { return t.out * y.out * x.out; }
};

// Clip, then cell by cell, row 0 of a clip its class token: `in` (B, 1 + in_cells, C) with dense channels, the others
// contiguous.
// max_pool_tokens: cells [begin, end) of the B * out_cells; writes their rows of out (B, 1 + out_cells, C) and of rows
// (B, out_cells, C), where each value came from.
// max_pool_tokens_backward: cells [begin, end) of the B * in_cells of grad_x (B, 1 + in_cells, C).
IFDD_DECLARE_PER_ISA(template <class T>
                     void max_pool_tokens(const MaxPool& size, const T* in, int64_t clip, int64_t token, int64_t begin,
                                          int64_t end, T* out, int32_t* rows);
                     template <class T>
                     void max_pool_tokens_backward(const MaxPool& size, const T* grad, const int32_t* rows,
                                                   int64_t begin, int64_t end, T* grad_x);)

}  // namespace ifdd::cpu
