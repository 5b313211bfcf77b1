// ifdd::gelu_linear and its backward on the CPU: checks, threads and the products, which PyTorch's libraries compute.
// The activation is in kernels/gelu_linear.cpp; the definition in ifdd_kernels/reference/gelu_linear.py.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "floating.h"
#include "kernels/gelu_linear.h"

namespace ifdd::cpu {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

void check_inputs(const char* op, const Tensor& x, const Tensor& weight) {
  check_device(op, "x", x);
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  check_parameter(op, "weight", weight, {-1, -1}, x.scalar_type());
  if (x.dim() < 2 || x.size(x.dim() - 1) != weight.size(1)) {
    fail(op, "x", "expected shape (..., ", weight.size(1), ") with at least two axes, got ", shape_text(x.sizes()));
  }
}

// PyTorch's float16 products on a CPU are slower than float32 ones by orders of magnitude.
ScalarType product_dtype(ScalarType dtype) { return dtype == ScalarType::Half ? ScalarType::Float : dtype; }

Tensor as(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : stable::to(tensor, dtype);
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(std::optional<Tensor>(bias))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor gelu_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "gelu_linear";
  check_inputs(op, x, weight);
  check_tensor(op, "bias", bias, {weight.size(0)}, {weight.scalar_type()});
  const Tensor in = stable::contiguous(x), activated = stable::empty_like(in);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = IFDD_SELECT(gelu<T>);
    stable::parallel_for(0, in.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernel(data<T>(in), begin, end, mutable_data<T>(activated));
    });
  });
  const ScalarType dtype = product_dtype(x.scalar_type());
  return as(linear(as(activated, dtype), as(weight, dtype), as(bias, dtype)), x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> gelu_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const char* op = "gelu_linear_backward";
  check_inputs(op, x, weight);
  check_device(op, "grad", grad);
  check_dtype(op, "grad", grad, {x.scalar_type()});
  const int64_t K = weight.size(1), M = weight.size(0), rows = K == 0 ? 0 : x.numel() / K;
  if (grad.dim() != x.dim() || grad.size(grad.dim() - 1) != M || grad.numel() != rows * M) {
    fail(op, "grad", "expected the shape of x ", shape_text(x.sizes()), " with a last axis of ", M, ", got ",
         shape_text(grad.sizes()));
  }
  const ScalarType dtype = product_dtype(x.scalar_type());
  const Tensor in = stable::contiguous(x), activated = stable::empty_like(in);
  const Tensor grad_rows = as(stable::reshape(grad, {rows, M}), dtype);
  const Tensor grad_x = as(stable::matmul(grad_rows, as(weight, dtype)), x.scalar_type());
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = IFDD_SELECT(gelu_backward<T>);
    stable::parallel_for(0, in.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernel(data<T>(in), begin, end, mutable_data<T>(activated), mutable_data<T>(grad_x));
    });
  });
  const Tensor activated_rows = as(stable::reshape(activated, {rows, K}), dtype);
  const Tensor grad_weight = stable::matmul(stable::transpose(grad_rows, 0, 1), activated_rows);
  const std::array<int64_t, 1> over_rows{0};
  const Tensor grad_bias = stable::sum(grad_rows, torch::headeronly::IntHeaderOnlyArrayRef(over_rows.data(), 1), false,
                                       accumulation_dtype(x.scalar_type()));
  return {stable::reshape(grad_x, x.sizes()), as(grad_weight, weight.scalar_type()),
          as(grad_bias, weight.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("gelu_linear", TORCH_BOX(&gelu_linear));
  m.impl("gelu_linear_backward", TORCH_BOX(&gelu_linear_backward));
}

}  // namespace ifdd::cpu
