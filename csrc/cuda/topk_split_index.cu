// ifdd::topk_split_index on CUDA. The definition, in plain torch, is in ifdd_kernels/reference/topk_split_index.py.
#include <tuple>

#include "cuda/tokens.h"

namespace ifdd::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kFramesAtOnce = 4 * kWarp;  // sums a warp keeps, one a lane and register
constexpr int kMostFrames = 8192;         // 96 KB of shared memory, of the 99 on sm_86 and sm_89

// partial (B, cells, T): the product of each frame with the mean over time, pooled cell by pooled cell. A warp takes a
// cell of a clip; its T rows come from memory once and from the first-level cache the second time.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 8) topk_products_kernel(Tokenizer<T> in, double* partial) {
  const TokenSizes& size = in.size;
  const int work = static_cast<int>(blockIdx.x) * kWarps + warp_index();
  if (work >= size.B * size.cells()) return;
  const int b = work / size.cells(), p = work % size.cells();
  const float share = 1 / static_cast<float>(size.T);
  for (int t0 = 0; t0 < size.T; t0 += kFramesAtOnce) {
    double sum[kFramesAtOnce / kWarp] = {};
    for (int turn = 0; turn < size.C; turn += kWarp * V) {
      const int c = turn + lane_index() * V;
      float mean[V] = {};
      if (c < size.C) {
        for (int t = 0; t < size.T; ++t) {
          float row[V];
          pooled_vector(in, b * size.T + t, p, c, row);
#pragma unroll
          for (int i = 0; i < V; ++i) mean[i] += row[i];
        }
#pragma unroll
        for (int i = 0; i < V; ++i) mean[i] *= share;
      }
#pragma unroll
      for (int r = 0; r < kFramesAtOnce / kWarp; ++r) {
        for (int j = 0; j < kWarp && t0 + r * kWarp + j < size.T; ++j) {
          float product = 0;
          if (c < size.C) {
            float row[V];
            pooled_vector(in, b * size.T + t0 + r * kWarp + j, p, c, row);
#pragma unroll
            for (int i = 0; i < V; ++i) product += row[i] * mean[i];
          }
          product = warp_sum(product);
          if (lane_index() == j) sum[r] += static_cast<double>(product);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kFramesAtOnce / kWarp; ++r) {
      const int t = t0 + r * kWarp + lane_index();
      if (t < size.T) partial[static_cast<int64_t>(work) * size.T + t] = sum[r];
    }
  }
}

// Whether frame u ranks above frame t: the larger score, NaN above all numbers as torch sorts, the earlier of equals.
IFDD_DEVICE bool ranks_above(const double* score, int u, int t) {
  const bool nan_u = score[u] != score[u], nan_t = score[t] != score[t];
  if (nan_u || nan_t) return nan_u && (!nan_t || u < t);
  return score[u] > score[t] || (score[u] == score[t] && u < t);
}

// A block takes a clip: sums the cells' products, ranks the frames, and writes both halves in order of time.
__global__ void __launch_bounds__(kThreads)
    topk_choose_kernel(const double* partial, int cells, int frames, double scale, bool order_prior,
                       int64_t* static_index, int64_t* dynamic_index) {
  double* score = reinterpret_cast<double*>(dynamic_shared());
  int* is_static = reinterpret_cast<int*>(score + frames);
  const int64_t b = blockIdx.x;
  for (int t = static_cast<int>(threadIdx.x); t < frames; t += kThreads) {
    double sum = 0;
    for (int p = 0; p < cells; ++p) sum += partial[(b * cells + p) * frames + t];
    score[t] = sum * scale + (order_prior && t % 2 == 0 ? 1.0 : 0.0);
  }
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < frames; t += kThreads) {
    int above = 0;
    for (int u = 0; u < frames; ++u) above += ranks_above(score, u, t);
    is_static[t] = above < frames / 2;
  }
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x); t < frames; t += kThreads) {
    int before = 0;
    for (int u = 0; u < t; ++u) before += is_static[u];
    if (is_static[t]) {
      static_index[b * (frames / 2) + before] = t;
    } else {
      dynamic_index[b * (frames / 2) + t - before] = t;
    }
  }
}

std::tuple<Tensor, Tensor> topk_split_index(const Tensor& x, int64_t height, int64_t width, int64_t pool,
                                            bool order_prior) {
  const char* op = "topk_split_index";
  const TokenSizes size = check_grid(op, x, height, width, pool);
  check_even_frames(op, x);
  if (size.T > kMostFrames) {
    fail(op, "x", "expected at most ", kMostFrames, " frames (the scores of a clip lie in shared memory), got shape ",
         shape_text(x.sizes()));
  }
  const CurrentDevice device(x);
  const size_t shared_bytes = size.T * (sizeof(double) + sizeof(int));
  const Tensor rows = dense_rows(x);
  const Tensor index[2] = {stable::new_empty(x, {size.B, size.T / 2}, ScalarType::Long),
                           stable::new_empty(x, {size.B, size.T / 2}, ScalarType::Long)};
  const Tensor partial = stable::new_empty(x, {size.B, size.cells(), size.T}, ScalarType::Double);
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const Tokenizer<T> in{size, frames_of<T>(rows), nullptr, nullptr};
    const int64_t blocks = (static_cast<int64_t>(size.B) * size.cells() + kWarps - 1) / kWarps;
    dispatch_vector<T>(rows_fit<kVector<T>>(in.x, size.C), [&](auto vector) {
      run(op, device, topk_products_kernel<T, decltype(vector)::value>, dim3(grid_size(op, blocks)), kThreads, 0, in,
          mutable_data<double>(partial));
    });
  });
  run(op, device, topk_choose_kernel, dim3(grid_size(op, size.B)), kThreads, shared_bytes, data<double>(partial),
      size.cells(), size.T, 1.0 / size.C, order_prior, mutable_data<int64_t>(index[0]),
      mutable_data<int64_t>(index[1]));
  return {index[0], index[1]};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) { m.impl("topk_split_index", TORCH_BOX(&topk_split_index)); }

}  // namespace ifdd::cuda
