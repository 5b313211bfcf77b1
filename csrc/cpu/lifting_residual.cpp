// ifdd::lifting_residual and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/lifting_residual.cpp; the definition, in plain torch, in ifdd_kernels/reference/lifting_residual.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>
#include <vector>

#include "boundary.h"
#include "frames.h"
#include "kernels/lifting_residual.h"

namespace ifdd::cpu {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 32768;

void check_inputs(const char* op, const Tensor& x, const Tensor& approximation) {
  check_floating(op, "x", x, {-1, -1, -1, -1});
  check_floating(op, "approximation", approximation, {x.size(0), -1, x.size(2), x.size(3)});
  const bool wide = x.scalar_type() == ScalarType::Double;
  if (wide != (approximation.scalar_type() == ScalarType::Double)) {
    fail(op, "approximation", "expected dtype float64 exactly if x has it, got ",
         dtype_name(approximation.scalar_type()), " with x of ", dtype_name(x.scalar_type()));
  }
}

int64_t grain(int64_t elements) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements)); }

// Mean of every cell (B * N) over frames and channels.
std::vector<double> means(const Tensor& x) {
  const int64_t K = x.size(1), N = x.size(2), C = x.size(3), cells = x.size(0) * N;
  std::vector<double> mean(cells);
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Clip<T> clip{frames_of<T>(rows), K, N, C};
    const auto kernel = IFDD_SELECT(mean_frames<T>);
    stable::parallel_for(0, cells, grain(K * C),
                         [&](int64_t begin, int64_t end) { kernel(clip, begin, end, mean.data()); });
  });
  return mean;
}

Tensor lifting_residual(const Tensor& x, const Tensor& approximation) {
  check_inputs("lifting_residual", x, approximation);
  const Tensor residual = empty(x, {x.size(0), x.size(2)}, accumulation_dtype(x.scalar_type()));
  const std::vector<double> of_x = means(x), of_approximation = means(approximation);
  dispatch(residual.scalar_type(), [&](auto type) {
    using A = decltype(type);
    if constexpr (std::is_floating_point_v<A>) {
      A* out = mutable_data<A>(residual);
      for (size_t i = 0; i < of_x.size(); ++i) out[i] = static_cast<A>(of_x[i] - of_approximation[i]);
    }
  });
  return residual;
}

// Gradient of the frames `like`: grad (B, N) shared among the frames and channels of its cell.
Tensor spread(const Tensor& grad, const Tensor& like, double sign) {
  const int64_t B = like.size(0), K = like.size(1), N = like.size(2), C = like.size(3);
  const Tensor out = empty(like, {B, K, N, C}, like.scalar_type());
  dispatch(like.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const double share = sign / (static_cast<double>(K) * static_cast<double>(C));
    const auto kernel = IFDD_SELECT(spread_frames<T>);
    stable::parallel_for(0, B * K * N, grain(C), [&](int64_t begin, int64_t end) {
      kernel(data<A>(grad), share, K, N, C, begin, end, mutable_data<T>(out));
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> lifting_residual_backward(const Tensor& grad, const Tensor& x, const Tensor& approximation) {
  const char* op = "lifting_residual_backward";
  check_inputs(op, x, approximation);
  check_tensor(op, "grad_residual", grad, {x.size(0), x.size(2)}, {accumulation_dtype(x.scalar_type())});
  const Tensor g = as_contiguous(grad);
  return {spread(g, x, 1), spread(g, approximation, -1)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("lifting_residual", IFDD_BOX(&lifting_residual));
  m.impl("lifting_residual_backward", IFDD_BOX(&lifting_residual_backward));
}

}  // namespace ifdd::cpu
