// Products of the frames of a clip with each other on CUDA, shared by frame_correlation and split_index.
#pragma once

#include "cuda/rows.h"

namespace ifdd::cuda {

// Rows and columns of the (T, T) products that a warp forms together: 12 reads for 32 products.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 8;
static_assert(kTileRows * kTileColumns == kWarp, "a lane finishes each product");

__host__ __device__ inline int64_t correlation_tiles(int64_t frames) {
  return ((frames + kTileRows - 1) / kTileRows) * ((frames + kTileColumns - 1) / kTileColumns);
}

// One tile of out (T, T) = scale z z^T for a clip z (T, D), by a warp. A product and its mirror image add the same
// terms in the same order, so the matrix is symmetric to the bit.
template <class T>
IFDD_DEVICE void correlate_tile(const T* z, int64_t frames, int64_t D, float scale, int64_t tile, float* out) {
  const int64_t across = (frames + kTileColumns - 1) / kTileColumns;
  const int64_t first_row = tile / across * kTileRows, first_column = tile % across * kTileColumns;
  const auto clamped = [&](int64_t t) { return t < frames ? t : frames - 1; };
  float sum[kWarp] = {};
  for (int64_t d = lane_index(); d < D; d += kWarp) {
    float column[kTileColumns];
#pragma unroll
    for (int j = 0; j < kTileColumns; ++j) column[j] = widen(z[clamped(first_column + j) * D + d]);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i) {
      const float row = widen(z[clamped(first_row + i) * D + d]);
#pragma unroll
      for (int j = 0; j < kTileColumns; ++j) sum[i * kTileColumns + j] += row * column[j];
    }
  }
  const float value = warp_sum_scatter(sum) * scale;
  const int64_t row = first_row + lane_index() / kTileColumns, column = first_column + lane_index() % kTileColumns;
  if (row < frames && column < frames) out[row * frames + column] = value;
}

constexpr int kCorrelationThreads = 128;
constexpr int kCorrelationFrames = 8;  // frames of a clip that share one read of z

// grad_z = scale (G + G^T) z, z (B, T, D): a block takes eight frames and 128 values of each.
template <class T>
__global__ void __launch_bounds__(kCorrelationThreads)
    correlation_backward_kernel(const float* grad, const T* z, int64_t frames, int64_t D, float scale, T* grad_z) {
  const int64_t spans = (D + kCorrelationThreads - 1) / kCorrelationThreads;
  const int64_t tiles = (frames + kCorrelationFrames - 1) / kCorrelationFrames;
  const int64_t d = blockIdx.x % spans * kCorrelationThreads + threadIdx.x;
  const int64_t first = blockIdx.x / spans % tiles * kCorrelationFrames, b = blockIdx.x / spans / tiles;
  if (d >= D) return;
  const float* g = grad + b * frames * frames;
  float sum[kCorrelationFrames] = {};
  for (int64_t u = 0; u < frames; ++u) {
    const float value = widen(z[(b * frames + u) * D + d]);
#pragma unroll
    for (int i = 0; i < kCorrelationFrames; ++i) {
      const int64_t t = first + i < frames ? first + i : frames - 1;
      sum[i] += (g[t * frames + u] + g[u * frames + t]) * value;
    }
  }
#pragma unroll
  for (int i = 0; i < kCorrelationFrames; ++i) {
    if (first + i < frames) grad_z[(b * frames + first + i) * D + d] = narrow<T>(sum[i] * scale);
  }
}

template <class T>
void launch_correlation_backward(const char* op, const CurrentDevice& device, const float* grad, const T* z, int64_t B,
                                 int64_t frames, int64_t D, double scale, T* grad_z) {
  const int64_t spans = (D + kCorrelationThreads - 1) / kCorrelationThreads;
  const int64_t tiles = (frames + kCorrelationFrames - 1) / kCorrelationFrames;
  run(op, device, correlation_backward_kernel<T>, dim3(grid_size(op, B * tiles * spans)), kCorrelationThreads, 0, grad,
      z, frames, D, static_cast<float>(scale), grad_z);
}

}  // namespace ifdd::cuda
