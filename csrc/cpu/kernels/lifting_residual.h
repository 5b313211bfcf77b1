// Kernels of lifting_residual, free of torch. Frames: see frame_tokens.h.
#pragma once

#include <cstdint>

#include "frame_tokens.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

// Frames and their sizes; K frames a clip, whether T of the input or T / 2 of the approximation.
template <class T>
struct Clip {
  Frames<T> frames;
  int64_t K, N, C;
};

// mean_frames: out[cell] = mean over (K, C), for the cells [begin, end) of the B * N.
// spread_frames: rows [begin, end) of the B * K * N of a contiguous out (B, K, N, C) hold share * grad (B, N) of their
// cell.
IFDD_DECLARE_PER_ISA(template <class T> void mean_frames(const Clip<T>& x, int64_t begin, int64_t end, double* out);
                     template <class T> void spread_frames(const acc_t<T>* grad, double share, int64_t K, int64_t N,
                                                           int64_t C, int64_t begin, int64_t end, T* out);)

}  // namespace ifdd::cpu
