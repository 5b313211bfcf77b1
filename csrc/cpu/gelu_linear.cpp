// ifdd::gelu_linear and its backward on the CPU: checks, the activation's threads, and the choice of the products
// (product.h). The activation is in kernels/gelu_linear.cpp; the definition in ifdd_kernels/reference/gelu_linear.py.
#include <torch/csrc/stable/library.h>

#include "boundary.h"
#include "kernels/gelu_linear.h"
#include "product.h"

namespace ifdd::cpu {
namespace {

Tensor gelu_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "gelu_linear";
  check_linear(op, x, weight);
  check_tensor(op, "bias", bias, {weight.size(0)}, {weight.scalar_type()});
  if (widened(x, weight)) {
    return dispatch_16_bits(x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      return wide_linear<T>(x, weight, bias, IFDD_SELECT(gelu<T, float>));
    });
  }
  const Tensor in = as_contiguous(x), activated = stable::empty_like(in);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = IFDD_SELECT(gelu<T, T>);
    stable::parallel_for(0, in.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernel(data<T>(in) + begin, end - begin, mutable_data<T>(activated) + begin);
    });
  });
  return library_linear(activated, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> gelu_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const char* op = "gelu_linear_backward";
  check_linear(op, x, weight);
  check_linear_grad(op, grad, x, weight);
  if (widened(x, weight)) {
    return dispatch_16_bits(x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      return wide_linear_backward<T>(grad, x, weight, IFDD_SELECT(gelu_backward<T, float>));
    });
  }
  return library_linear_backward(grad, x, weight, [&](const Tensor& grad_x) {
    const Tensor in = as_contiguous(x), activated = stable::empty_like(in);
    dispatch(x.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const auto kernel = IFDD_SELECT(gelu_backward<T, T>);
      stable::parallel_for(0, in.numel(), kGrain, [&](int64_t begin, int64_t end) {
        kernel(data<T>(in) + begin, end - begin, mutable_data<T>(activated) + begin, mutable_data<T>(grad_x) + begin);
      });
    });
    return activated;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("gelu_linear", IFDD_BOX(&gelu_linear));
  m.impl("gelu_linear_backward", IFDD_BOX(&gelu_linear_backward));
}

}  // namespace ifdd::cpu
