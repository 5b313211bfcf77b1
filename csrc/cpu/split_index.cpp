// ifdd::split_index and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/frame_tokens.cpp (frames to tokens) and kernels/split_index.cpp (tokens to indexes); the definition, in plain
// torch, in ifdd_kernels/reference/split_index.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "correlation.h"
#include "frames.h"

namespace ifdd::cpu {
namespace {

TokenSizes check_inputs(const char* op, const Tensor& x, const Tensor& token_weight, const Tensor& token_bias,
                        const Tensor& static_weight, const Tensor& dynamic_weight, int64_t height, int64_t width,
                        int64_t pool) {
  const TokenSizes size =
      check_tokenizer(op, x, "token_weight", token_weight, "token_bias", token_bias, height, width, pool);
  check_even_frames(op, x);
  check_parameter(op, "static_weight", static_weight, {size.T / 2, size.T * size.T}, x.scalar_type());
  check_parameter(op, "dynamic_weight", dynamic_weight, {size.T / 2, size.T * size.T}, x.scalar_type());
  return size;
}

// Clips of offsets that are worth a thread: each costs about T^3 products.
int64_t offsets_grain(int64_t T) { return std::max<int64_t>(1, 32768 / (T * T * T)); }

std::tuple<Tensor, Tensor, Tensor> split_index(const Tensor& x, const Tensor& token_weight, const Tensor& token_bias,
                                               const Tensor& static_weight, const Tensor& dynamic_weight,
                                               int64_t height, int64_t width, int64_t pool, double reach) {
  const TokenSizes size =
      check_inputs("split_index", x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const int64_t B = x.size(0), frames = size.T, K = frames / 2;
  const ScalarType acc_dtype = accumulation_dtype(x.scalar_type());
  const Tensor index[2] = {empty(x, {B, K}, acc_dtype), empty(x, {B, K}, acc_dtype)};
  const Tensor correlation = empty(x, {B, frames, frames}, acc_dtype);
  const Tensor weight[2] = {accumulable(static_weight), accumulable(dynamic_weight)};
  const Tensor rows = dense_channels(x);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    std::vector<A> tokens(B * frames * size.tokens());
    Tokenizer<T>(size, rows, token_weight, token_bias).forward(nullptr, tokens.data());
    correlate_clips(tokens.data(), B, frames, size.tokens(), 1.0 / static_cast<double>(size.C),
                    mutable_data<A>(correlation));
    const OffsetsForward<A> call{
        {frames, static_cast<A>(reach), data<A>(correlation), {data<A>(weight[0]), data<A>(weight[1])}},
        {mutable_data<A>(index[0]), mutable_data<A>(index[1])}};
    const auto kernel = IFDD_SELECT(offsets<A>);
    stable::parallel_for(0, B, offsets_grain(frames), [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(frames * frames);
      kernel(call, begin, end, scratch.data());
    });
  });
  return {index[0], index[1], correlation};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> split_index_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& grad_correlation, const Tensor& x,
    const Tensor& token_weight, const Tensor& token_bias, const Tensor& static_weight, const Tensor& dynamic_weight,
    const Tensor& correlation, int64_t height, int64_t width, int64_t pool, double reach) {
  const char* op = "split_index_backward";
  const TokenSizes size =
      check_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const int64_t B = x.size(0), frames = size.T, K = frames / 2, pairs = frames * frames;
  const ScalarType acc_dtype = accumulation_dtype(x.scalar_type());
  check_tensor(op, "grad_static", grad_static, {B, K}, {acc_dtype});
  check_tensor(op, "grad_dynamic", grad_dynamic, {B, K}, {acc_dtype});
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
    // Offsets back to the correlation.
    std::vector<A> attention(2 * B * pairs), inner(2 * B * K), grad_total(B * pairs);
    OffsetsBackward<A> call{};
    call.in = {frames, static_cast<A>(reach), data<A>(saved), {data<A>(weight[0]), data<A>(weight[1])}};
    call.grad_correlation = data<A>(direct);
    call.total = grad_total.data();
    for (int group = 0; group < 2; ++group) {
      call.grad_index[group] = data<A>(grad_index[group]);
      call.attention[group] = attention.data() + group * B * pairs;
      call.inner[group] = inner.data() + group * B * K;
    }
    const auto kernel = IFDD_SELECT(offsets_backward<A>);
    stable::parallel_for(0, B, offsets_grain(frames), [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
    const auto weight_gradient = IFDD_SELECT(offsets_weight_gradient<A>);
    for (int group = 0; group < 2; ++group) {
      const int64_t grain = std::max<int64_t>(256, 65536 / std::max<int64_t>(1, B));
      stable::parallel_for(0, K * pairs, grain, [&](int64_t begin, int64_t end) {
        weight_gradient(call.inner[group], call.attention[group], B, K, pairs, begin, end,
                        mutable_data<A>(grad_weight[group]));
      });
    }
    // Correlation back to the tokens, tokens back to the frames.
    const int64_t D = size.tokens();
    std::vector<A> before(B * frames * D), tokens(B * frames * D), grad_tokens(B * frames * D);
    const Tokenizer<T> tokenizer(size, rows, token_weight, token_bias);
    tokenizer.forward(before.data(), tokens.data());
    correlate_clips_backward(grad_total.data(), tokens.data(), B, frames, D, 1.0 / static_cast<double>(size.C),
                             grad_tokens.data());
    tokenizer.backward(before.data(), grad_tokens.data(), mutable_data<T>(grad_x), mutable_data<A>(grad_token_weight),
                       mutable_data<A>(grad_token_bias));
  });
  return {grad_x, converted(grad_token_weight, token_weight.scalar_type()),
          converted(grad_token_bias, token_bias.scalar_type()), converted(grad_weight[0], static_weight.scalar_type()),
          converted(grad_weight[1], dynamic_weight.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("split_index", TORCH_BOX(&split_index));
  m.impl("split_index_backward", TORCH_BOX(&split_index_backward));
}

}  // namespace ifdd::cpu
