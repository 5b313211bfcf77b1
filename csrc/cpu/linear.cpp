// ifdd::linear and its backward on the CPU: checks, and the choice of the products (product.h). The definition is in
// ifdd_kernels/reference/linear.py.
#include <torch/csrc/stable/library.h>

#include "boundary.h"
#include "product.h"

namespace ifdd::cpu {
namespace {

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const char* op = "linear";
  check_linear(op, x, weight);
  if (bias) check_tensor(op, "bias", *bias, {weight.size(0)}, {weight.scalar_type()});
  if (!widened(x, weight)) return library_linear(x, weight, bias);
  return dispatch_16_bits(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    return wide_linear<T>(x, weight, bias, IFDD_SELECT(widen_all<T>));
  });
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const char* op = "linear_backward";
  check_linear(op, x, weight);
  check_linear_grad(op, grad, x, weight);
  if (!widened(x, weight)) {
    return library_linear_backward(grad, x, weight, [&](const Tensor&) { return x; });
  }
  return dispatch_16_bits(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto widen_elements = IFDD_SELECT(widen_all<T>);
    return wide_linear_backward<T>(
        grad, x, weight, [=](const T* from, int64_t count, float* to, float*) { widen_elements(from, count, to); });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("linear", IFDD_BOX(&linear));
  m.impl("linear_backward", IFDD_BOX(&linear_backward));
}

}  // namespace ifdd::cpu
