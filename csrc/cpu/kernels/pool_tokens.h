// Kernels of pool_tokens, free of torch: what csrc/cpu/pool_tokens.cpp hands to csrc/cpu/kernels/pool_tokens.cpp.
//
// One call of a kernel is one part (q, k or v). Its tokens are rows of d channels with any strides over clips, tokens
// and heads. Cell (t, y, x) of the input grid is token 1 + (t H + y) W + x; the class token is token 0.
//
// A "band" is the outputs of one clip with one y (all t and x); bands are the units of work.
#pragma once

#include <cstdint>

#include "ifdd/padding.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

// Rows that the kernels read in whole vectors (weights, scratch) are padded (ifdd/padding.h), weights with zeros.

constexpr int64_t kTaps = 27;
// Output columns that one tile of the convolution keeps in registers, at most.
constexpr int64_t kTile = 8;

struct Grid {
  int64_t t, y, x;
};

struct PoolSizes {
  int64_t B, heads, d;
  Grid in, out, stride;
  int64_t in_cells() const { return in.t * in.y * in.x; }
  int64_t out_cells() const { return out.t * out.y * out.x; }
};

// Whether a kernel first copies a band's input to rows that whole vectors of the accumulation type can read.
template <class T>
constexpr bool staged(int64_t d) {
  return sizeof(T) != sizeof(acc_t<T>) || d % kPad != 0;
}

template <class T>
constexpr int64_t scratch_size(const PoolSizes& size) {
  const int64_t rows = staged<T>(size.d) ? 3 * size.in.t * size.in.x : 0;
  return (kTile + rows) * padded(size.d);
}

template <class T>
struct TokenRows {
  T* data;
  int64_t clip, token, head;  // strides in elements; channels are contiguous
};

template <class T>
struct PoolForward {
  using A = acc_t<T>;
  PoolSizes size;
  TokenRows<const T> x;
  const A* weight;       // (27, padded(d))
  const A* norm_weight;  // (padded(d))
  const A* norm_bias;    // (padded(d))
  A eps;
  TokenRows<T> out;
  A* stats;  // (B, 1 + N', heads, 2)
};

template <class T>
struct PoolBackward {
  using A = acc_t<T>;
  PoolSizes size;
  TokenRows<const T> x;
  TokenRows<const T> grad;
  const A* weight;         // (27, padded(d))
  const A* weight_mirror;  // the same with the taps along x in reverse
  const A* norm_weight;    // (padded(d))
  const A* stats;          // (B, 1 + N', heads, 2)
  A* grad_u;               // (B, heads, N', padded(d)): gradient of the convolution's outputs
  A* partial;              // (B * out.y, 29, padded(d)): a band's gradients of the 27 taps, norm weight, norm bias
  TokenRows<T> grad_x;
};

// pool_forward: units [begin, end) of the B * heads * out.y, a band of one head each.
// pool_backward_norm: bands [begin, end) of the B * out.y. Writes grad_u, partial and the class tokens of grad_x.
// pool_backward_input: units [begin, end) of the B * heads * in.y. Writes the other tokens of grad_x from grad_u.
// Scratch: scratch_size(size) elements, kTile * padded(d) for the last; every pointer to padded rows is on a 64-byte
// boundary.
IFDD_DECLARE_PER_ISA(template <class T>
                     void pool_forward(const PoolForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch);
                     template <class T>
                     void pool_backward_norm(const PoolBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch);
                     template <class T> void pool_backward_input(const PoolBackward<T>& op, int64_t begin, int64_t end,
                                                                 acc_t<T>* scratch);)

}  // namespace ifdd::cpu
