// Kernels of topk_split_index, free of torch. Frames: see frame_tokens.h.
//
// With m = mean_u pool(x_u) the score of frame t is <pool(x_t), m> / C = <x_t, pool^T m> / C: the frames themselves are
// never pooled, only the mean frame is, forth and back.
#pragma once

#include <cstdint>

#include "frame_tokens.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

template <class T>
struct TopkScores {
  using A = acc_t<T>;
  TokenSizes size;
  Frames<T> x;
  A* mean;             // (B, N, C) mean frame, written by topk_mean
  const A* direction;  // (B, N, C) pool^T pool of it
  double* partial;     // (B, N, T) <x_tn, direction_n>
};

// topk_mean: cells [begin, end) of the B * N. topk_pool: clips [begin, end), scratch holds P * P * C.
// topk_products: cells [begin, end).
IFDD_DECLARE_PER_ISA(template <class T> void topk_mean(const TopkScores<T>& op, int64_t begin, int64_t end);
                     template <class A> void topk_pool(const TokenSizes& size, const A* mean, int64_t begin,
                                                       int64_t end, A* scratch, A* direction);
                     template <class T> void topk_products(const TopkScores<T>& op, int64_t begin, int64_t end);)

}  // namespace ifdd::cpu
