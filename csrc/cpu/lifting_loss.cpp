// ifdd::lifting_loss and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/lifting_loss.cpp; the definition, in plain torch, in ifdd_kernels/reference/lifting_loss.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>

#include "boundary.h"
#include "buffer.h"
#include "floating.h"
#include "kernels/lifting_loss.h"

namespace ifdd::cpu {
namespace {

// Elements of one partial sum. Fixed: the bits of the result are the same for any number of threads.
constexpr int64_t kChunk = 32768;

void check_inputs(const char* op, const Tensor& residual, double beta) {
  const auto sizes = residual.sizes();
  if (sizes.size() < 1) fail(op, "residual", "expected shape (B, ...), got a scalar");
  check_device(op, "residual", residual);
  switch (residual.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      break;
    default:
      fail(op, "residual", "expected dtype float32 or float64 or bfloat16 or float16, got ",
           dtype_name(residual.scalar_type()));
  }
  if (!(beta > 0)) fail(op, "beta", "expected a positive number, got ", beta);
}

// Weight of one element in the loss.
double share(const Tensor& residual, double weight, bool mean) {
  const double clips = static_cast<double>(residual.size(0));
  const double cells = residual.size(0) == 0 ? 1.0 : static_cast<double>(residual.numel()) / clips;
  return weight / (cells * (mean ? clips : 1.0));
}

Tensor lifting_loss(const Tensor& residual, double weight, double beta, bool mean) {
  check_inputs("lifting_loss", residual, beta);
  const Tensor loss = empty(residual, {}, accumulation_dtype(residual.scalar_type()));
  const Tensor r = as_contiguous(residual);
  const int64_t count = r.numel();
  dispatch(r.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Buffer<double> partial((count + kChunk - 1) / kChunk);
    const auto kernel = IFDD_SELECT(smooth_l1_sum<T>);
    stable::parallel_for(0, static_cast<int64_t>(partial.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        partial[i] = kernel(data<T>(r), beta, i * kChunk, std::min(count, (i + 1) * kChunk));
      }
    });
    double sum = 0;
    for (double part : partial) sum += part;
    // No clips: the sum is 0, the mean is not defined, as in PyTorch; nor is the mean of a clip without cells.
    const bool undefined = r.size(0) == 0 ? mean : count == 0;
    *mutable_data<A>(loss) =
        undefined ? std::numeric_limits<A>::quiet_NaN() : static_cast<A>(sum * share(r, weight, mean));
  });
  return loss;
}

Tensor lifting_loss_backward(const Tensor& grad, const Tensor& residual, double weight, double beta, bool mean) {
  const char* op = "lifting_loss_backward";
  check_inputs(op, residual, beta);
  check_tensor(op, "grad_loss", grad, {}, {accumulation_dtype(residual.scalar_type())});
  const Tensor r = as_contiguous(residual);
  const Tensor out = empty(residual, residual.sizes(), residual.scalar_type());
  dispatch(r.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const double scale = static_cast<double>(*data<A>(grad)) * share(r, weight, mean);
    const auto kernel = IFDD_SELECT(smooth_l1_gradient<T>);
    stable::parallel_for(0, r.numel(), kChunk, [&](int64_t begin, int64_t end) {
      kernel(data<T>(r), beta, scale, begin, end, mutable_data<T>(out));
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("lifting_loss", IFDD_BOX(&lifting_loss));
  m.impl("lifting_loss_backward", IFDD_BOX(&lifting_loss_backward));
}

}  // namespace ifdd::cpu
