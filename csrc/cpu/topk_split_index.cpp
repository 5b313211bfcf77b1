// ifdd::topk_split_index on the CPU: checks, memory, threads and the choice. The products are in
// kernels/topk_split_index.cpp; the definition, in plain torch, in ifdd_kernels/reference/topk_split_index.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "boundary.h"
#include "buffer.h"
#include "frames.h"
#include "kernels/topk_split_index.h"

namespace ifdd::cpu {
namespace {

// Whether frame u ranks above frame t: the larger score, NaN above all numbers as torch sorts, the earlier of equals.
bool ranks_above(const double* score, int64_t u, int64_t t) {
  const bool nan_u = std::isnan(score[u]), nan_t = std::isnan(score[t]);
  if (nan_u || nan_t) return nan_u && (!nan_t || u < t);
  return score[u] > score[t] || (score[u] == score[t] && u < t);
}

// Both groups (T / 2 each) in order of time: a frame is static if fewer than T / 2 rank above it.
void choose(const double* score, int64_t T, int64_t* static_index, int64_t* dynamic_index) {
  for (int64_t t = 0; t < T; ++t) {
    int64_t above = 0;
    for (int64_t u = 0; u < T; ++u) above += ranks_above(score, u, t);
    *(above < T / 2 ? static_index : dynamic_index)++ = t;
  }
}

std::tuple<Tensor, Tensor> topk_split_index(const Tensor& x, int64_t height, int64_t width, int64_t pool,
                                            bool order_prior) {
  const char* op = "topk_split_index";
  const TokenSizes size = check_grid(op, x, height, width, pool);
  check_even_frames(op, x);
  const int64_t B = x.size(0), cells = B * size.N, frames = size.T;
  const Tensor static_index = empty(x, {B, frames / 2}, ScalarType::Long);
  const Tensor dynamic_index = empty(x, {B, frames / 2}, ScalarType::Long);
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const bool pooled = height != pool || width != pool;
    Buffer<A> mean(cells * size.C), direction(pooled ? cells * size.C : 0);
    std::vector<double> partial(cells * frames);
    const TopkScores<T> call{size, frames_of<T>(rows), mean.data(), (pooled ? direction : mean).data(), partial.data()};
    const auto mean_kernel = IFDD_SELECT(topk_mean<T>);
    const auto pool_kernel = IFDD_SELECT(topk_pool<A>);
    const auto products = IFDD_SELECT(topk_products<T>);
    const int64_t grain = std::max<int64_t>(1, 32768 / (frames * size.C));
    stable::parallel_for(0, cells, grain, [&](int64_t begin, int64_t end) {
      if (pooled) return mean_kernel(call, begin, end);
      // Cell by cell, so that the T rows of one are still in the first-level cache for the products.
      for (int64_t cell = begin; cell < end; ++cell) {
        mean_kernel(call, cell, cell + 1);
        products(call, cell, cell + 1);
      }
    });
    if (pooled) {
      stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
        Buffer<A> scratch(size.cells() * size.C);
        pool_kernel(size, mean.data(), begin, end, scratch.data(), direction.data());
      });
      stable::parallel_for(0, cells, grain, [&](int64_t begin, int64_t end) { products(call, begin, end); });
    }
    std::vector<double> score(frames);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < frames; ++t) {
        double sum = 0;
        for (int64_t n = 0; n < size.N; ++n) sum += partial[(b * size.N + n) * frames + t];
        score[t] = sum / static_cast<double>(size.C) + (order_prior && t % 2 == 0 ? 1.0 : 0.0);
      }
      choose(score.data(), frames, mutable_data<int64_t>(static_index) + b * (frames / 2),
             mutable_data<int64_t>(dynamic_index) + b * (frames / 2));
    }
  });
  return {static_index, dynamic_index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) { m.impl("topk_split_index", IFDD_BOX(&topk_split_index)); }

}  // namespace ifdd::cpu
