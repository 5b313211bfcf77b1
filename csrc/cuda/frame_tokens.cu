// ifdd::frame_tokens and its backward on CUDA. The kernels are in tokens.h; the definition, in plain torch, in
// ifdd_kernels/reference/frame_tokens.py.
#include <tuple>

#include "cuda/tokens.h"

namespace ifdd::cuda {
namespace {

Tensor frame_tokens(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t height, int64_t width,
                    int64_t pool) {
  const char* op = "frame_tokens";
  const TokenSizes size = check_tokenizer(op, x, "weight", weight, "bias", bias, height, width, pool);
  const CurrentDevice device(x);
  const Tensor rows = dense_rows(x), weight_rows = as_float(weight), bias_row = as_float(bias);
  const Tensor tokens = stable::new_empty(x, {size.B, size.T, size.tokens()}, ScalarType::Float);
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_tokens(op, device, tokenizer_of<T>(size, rows, weight_rows, bias_row), nullptr, mutable_data<float>(tokens));
  });
  return tokens;
}

std::tuple<Tensor, Tensor, Tensor> frame_tokens_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         const Tensor& bias, int64_t height, int64_t width,
                                                         int64_t pool) {
  const char* op = "frame_tokens_backward";
  const TokenSizes size = check_tokenizer(op, x, "weight", weight, "bias", bias, height, width, pool);
  check_tensor(op, "grad_tokens", grad, x, {size.B, size.T, size.tokens()}, {ScalarType::Float});
  const CurrentDevice device(x);
  const Tensor rows = dense_rows(x), weight_rows = as_float(weight), bias_row = as_float(bias);
  const Tensor grad_tokens = stable::contiguous(grad);
  const Tensor before = stable::new_empty(x, {size.B, size.T, size.tokens()}, ScalarType::Float);
  const Tensor grad_x = stable::new_empty(x, {size.B, size.T, size.N, size.C});
  const Tensor grad_weight = stable::new_empty(weight, {size.S, size.C});
  const Tensor grad_bias = stable::new_empty(bias, {size.S});
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const Tokenizer<T> in = tokenizer_of<T>(size, rows, weight_rows, bias_row);
    launch_tokens(op, device, in, mutable_data<float>(before), nullptr);
    launch_tokens_backward(op, device, in, {data<float>(grad_tokens), data<float>(before)}, grad_x, grad_weight,
                           grad_bias);
  });
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("frame_tokens", TORCH_BOX(&frame_tokens));
  m.impl("frame_tokens_backward", TORCH_BOX(&frame_tokens_backward));
}

}  // namespace ifdd::cuda
