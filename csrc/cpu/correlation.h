// Products of the frames of a clip with each other, by threads: shared by frame_correlation and split_index.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "floating.h"
#include "kernels/split_index.h"

namespace ifdd::cpu {

// Frames of work that are worth a thread.
inline int64_t correlation_grain(int64_t T, int64_t D) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, T * D));
}

// out (B, T, T) = scale z z^T, z (B, T, D).
template <class T>
void correlate_clips(const T* z, int64_t B, int64_t frames, int64_t D, double scale, acc_t<T>* out) {
  const auto kernel = IFDD_SELECT(correlate<T>);
  stable::parallel_for(0, B * frames, correlation_grain(frames, D), [&](int64_t begin, int64_t end) {
    const Scratch<double> scratch(frames * D);
    kernel(z, frames, D, scale, begin, end, scratch.get(), out);
  });
}

// grad_z = scale (G + G^T) z.
template <class T>
void correlate_clips_backward(const acc_t<T>* grad, const T* z, int64_t B, int64_t frames, int64_t D, double scale,
                              T* grad_z) {
  const auto kernel = IFDD_SELECT(correlate_backward<T>);
  stable::parallel_for(0, B * frames, correlation_grain(frames, D), [&](int64_t begin, int64_t end) {
    const Scratch<acc_t<T>> scratch(D);
    kernel(grad, z, frames, D, static_cast<acc_t<T>>(scale), begin, end, scratch.get(), grad_z);
  });
}

}  // namespace ifdd::cpu
