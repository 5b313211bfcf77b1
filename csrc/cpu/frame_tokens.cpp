// ifdd::frame_tokens and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/frame_tokens.cpp; the definition, in plain torch, in ifdd_kernels/reference/frame_tokens.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "boundary.h"
#include "frames.h"

namespace ifdd::cpu {
namespace {

Tensor frame_tokens(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t height, int64_t width,
                    int64_t pool) {
  const TokenSizes size = check_tokenizer("frame_tokens", x, "weight", weight, "bias", bias, height, width, pool);
  const Tensor tokens = empty(x, {x.size(0), size.T, size.tokens()}, accumulation_dtype(x.scalar_type()));
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Tokenizer<T> tokenizer(size, rows, weight, bias);
    tokenizer.forward(0, tokenizer.frames, nullptr, mutable_data<acc_t<T>>(tokens));
  });
  return tokens;
}

std::tuple<Tensor, Tensor, Tensor> frame_tokens_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                         const Tensor& bias, int64_t height, int64_t width,
                                                         int64_t pool) {
  const char* op = "frame_tokens_backward";
  const TokenSizes size = check_tokenizer(op, x, "weight", weight, "bias", bias, height, width, pool);
  const ScalarType acc_dtype = accumulation_dtype(x.scalar_type());
  check_tensor(op, "grad_tokens", grad, {x.size(0), size.T, size.tokens()}, {acc_dtype});
  const Tensor grad_tokens = as_contiguous(grad);
  const Tensor grad_x = empty(x, {x.size(0), size.T, size.N, size.C}, x.scalar_type());
  const Tensor grad_weight = empty(x, {size.S, size.C}, acc_dtype);
  const Tensor grad_bias = empty(x, {size.S}, acc_dtype);
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Tokenizer<T> tokenizer(size, rows, weight, bias);
    const TokenizerBackward<T> backward(tokenizer, nullptr, data<A>(grad_tokens), mutable_data<T>(grad_x));
    backward.run(0, backward.chunks);
    backward.sum(mutable_data<A>(grad_weight), mutable_data<A>(grad_bias));
  });
  return {grad_x, converted(grad_weight, weight.scalar_type()), converted(grad_bias, bias.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("frame_tokens", IFDD_BOX(&frame_tokens));
  m.impl("frame_tokens_backward", IFDD_BOX(&frame_tokens_backward));
}

}  // namespace ifdd::cpu
