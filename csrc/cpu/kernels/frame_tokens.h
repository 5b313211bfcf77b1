// Kernels of frame_tokens, free of torch; split_index uses them too.
//
// The 1x1 convolution comes before the average pool: both are linear, so q = W x_n per cell of the grid (S x N numbers)
// is pooled instead of x. One pass over x whatever the grids, and in backward the pool is again only a matter of S x N
// numbers: with g the gradient of q, dx_n = W^T g_n and dW = sum_n g_n x_n^T.
#pragma once

#include <cstdint>

#include "ifdd/frames.h"
#include "ifdd/padding.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

struct TokenSizes {
  int64_t T, N, C;
  int64_t S;      // rows of the convolution
  int64_t H, W;   // grid, N = H * W
  int64_t P;      // side of the pooled grid
  int64_t width;  // padded(C): the row stride of packed weights

  constexpr int64_t cells() const { return P * P; }
  constexpr int64_t tokens() const { return S * cells(); }
};

template <class T>
struct TokenForward {
  using A = acc_t<T>;
  TokenSizes size;
  Frames<T> x;
  const A* weight;  // (S, width), zero beyond C
  const A* bias;    // (S)
  A* before;        // (B * T, S, P, P): the argument of the activation; may be null
  A* tokens;        // (B * T, S, P, P)
};

template <class T>
struct TokenBackward {
  using A = acc_t<T>;
  TokenSizes size;
  Frames<T> x;
  const A* weight;
  const A* bias;
  const A* before;       // as stored by forward, or null: recomputed
  const A* grad_tokens;  // (B * T, S, P, P)
  int64_t frames;        // B * T
  int64_t frames_per_chunk;
  bool add;           // to grad_x, instead of writing it
  T* grad_x;          // (B, T, N, C) contiguous
  A* weight_partial;  // (chunks, S, width)
  A* bias_partial;    // (chunks, S)
};

// Frames of one unit of backward work, so that there are about 64 partial sums, or one a clip: a part of a clip that
// divides it, or whole clips. A function of the sizes only: the sums, and so the bits of the result, are the same for
// any number of threads.
constexpr int64_t token_chunk(int64_t frames, int64_t frames_of_a_clip) {
  if (frames == 0) return 1;
  const int64_t wanted = (frames + 63) / 64;
  if (wanted >= frames_of_a_clip) return (wanted + frames_of_a_clip - 1) / frames_of_a_clip * frames_of_a_clip;
  int64_t chunk = wanted;
  while (frames_of_a_clip % chunk != 0) --chunk;
  return chunk;
}

// Rows that one step of the projection may widen.
constexpr int64_t kTokenRows = 4;
// Rows of x that the backward takes at a time: few enough for the memory prefetchers to follow each of them.
constexpr int64_t kTokenRowsBackward = 14;

// In elements of the accumulation type.
constexpr int64_t token_forward_scratch(const TokenSizes& s) { return s.S * s.N + kTokenRows * s.width; }
constexpr int64_t token_backward_scratch(const TokenSizes& s) {
  return token_forward_scratch(s) + 2 * s.tokens() + kTokenRowsBackward * kPad;
}

// forward: frames [begin, end) of the B * T. backward: chunks [begin, end).
IFDD_DECLARE_PER_ISA(template <class T>
                     void frame_tokens(const TokenForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch);
                     template <class T> void frame_tokens_backward(const TokenBackward<T>& op, int64_t begin,
                                                                   int64_t end, acc_t<T>* scratch);)

}  // namespace ifdd::cpu
