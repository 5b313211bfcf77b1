// ifdd::split_index and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/frame_tokens.cpp (frames to tokens) and kernels/split_index.cpp (tokens to indexes); the definition, in plain
// torch, in ifdd_kernels/reference/split_index.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "boundary.h"
#include "buffer.h"
#include "indexes.h"

namespace ifdd::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> split_index(const Tensor& x, const Tensor& token_weight, const Tensor& token_bias,
                                               const Tensor& static_weight, const Tensor& dynamic_weight,
                                               int64_t height, int64_t width, int64_t pool, double reach) {
  const TokenSizes size = check_index_inputs("split_index", x, token_weight, token_bias, static_weight, dynamic_weight,
                                             height, width, pool);
  const int64_t B = x.size(0), frames = size.T, K = frames / 2;
  const ScalarType acc_dtype = accumulation_dtype(x.scalar_type());
  const Tensor index[2] = {empty(x, {B, K}, acc_dtype), empty(x, {B, K}, acc_dtype)};
  const Tensor correlation = empty(x, {B, frames, frames}, acc_dtype);
  const Tensor weight[2] = {accumulable(static_weight), accumulable(dynamic_weight)};
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    Buffer<A> tokens(B * frames * size.tokens());
    const Tokenizer<T> tokenizer(size, rows, token_weight, token_bias);
    tokenizer.forward(0, tokenizer.frames, nullptr, tokens.data());
    correlate_clips(tokens.data(), B, frames, size.tokens(), 1.0 / static_cast<double>(size.C),
                    mutable_data<A>(correlation));
    find_indexes<A>({{frames, reach, data<A>(correlation), {data<A>(weight[0]), data<A>(weight[1])}},
                     {mutable_data<A>(index[0]), mutable_data<A>(index[1])}},
                    0, B);
  });
  return {index[0], index[1], correlation};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> split_index_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& grad_correlation, const Tensor& x,
    const Tensor& token_weight, const Tensor& token_bias, const Tensor& static_weight, const Tensor& dynamic_weight,
    const Tensor& correlation, int64_t height, int64_t width, int64_t pool, double reach) {
  const char* op = "split_index_backward";
  const TokenSizes size =
      check_index_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const int64_t B = x.size(0), frames = size.T, K = frames / 2, pairs = frames * frames;
  const ScalarType acc_dtype = accumulation_dtype(x.scalar_type());
  check_tensor(op, "grad_static_index", grad_static, {B, K}, {acc_dtype});
  check_tensor(op, "grad_dynamic_index", grad_dynamic, {B, K}, {acc_dtype});
  check_tensor(op, "grad_correlation", grad_correlation, {B, frames, frames}, {acc_dtype});
  check_tensor(op, "correlation", correlation, {B, frames, frames}, {acc_dtype});

  const Tensor rows = dense_channels(x);
  const Tensor saved = as_contiguous(correlation), direct = as_contiguous(grad_correlation);
  const Tensor grad_index[2] = {as_contiguous(grad_static), as_contiguous(grad_dynamic)};
  const Tensor weight[2] = {accumulable(static_weight), accumulable(dynamic_weight)};
  const Tensor grad_x = empty(x, {B, frames, size.N, size.C}, x.scalar_type());
  const Tensor grad_weight[2] = {empty(x, {K, pairs}, acc_dtype), empty(x, {K, pairs}, acc_dtype)};
  const Tensor grad_token_weight = empty(x, {size.S, size.C}, acc_dtype);
  const Tensor grad_token_bias = empty(x, {size.S}, acc_dtype);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const A* grads[2] = {data<A>(grad_index[0]), data<A>(grad_index[1])};
    const IndexesBackward<A> indexes(B, {frames, reach, data<A>(saved), {data<A>(weight[0]), data<A>(weight[1])}},
                                     grads, data<A>(direct));
    indexes.run(0, B);
    for (int group = 0; group < 2; ++group) indexes.weight_gradient(group, mutable_data<A>(grad_weight[group]));
    // Correlation back to the tokens, tokens back to the frames.
    const int64_t D = size.tokens();
    Buffer<A> before(B * frames * D), tokens(B * frames * D), grad_tokens(B * frames * D);
    const Tokenizer<T> tokenizer(size, rows, token_weight, token_bias);
    tokenizer.forward(0, tokenizer.frames, before.data(), tokens.data());
    correlate_clips_backward(indexes.total.data(), tokens.data(), B, frames, D, 1.0 / static_cast<double>(size.C),
                             grad_tokens.data());
    const TokenizerBackward<T> backward(tokenizer, before.data(), grad_tokens.data(), mutable_data<T>(grad_x));
    backward.run(0, backward.chunks);
    backward.sum(mutable_data<A>(grad_token_weight), mutable_data<A>(grad_token_bias));
  });
  return {grad_x, converted(grad_token_weight, token_weight.scalar_type()),
          converted(grad_token_bias, token_bias.scalar_type()), converted(grad_weight[0], static_weight.scalar_type()),
          converted(grad_weight[1], dynamic_weight.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("split_index", IFDD_BOX(&split_index));
  m.impl("split_index_backward", IFDD_BOX(&split_index_backward));
}

}  // namespace ifdd::cpu
