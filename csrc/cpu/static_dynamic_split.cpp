// ifdd::static_dynamic_split and its backward on the CPU: split_index and split_frames in one call. Threads take whole
// clips, so that what one phase leaves of a clip in the cache is there for the next; the phases are those two ops', and
// so are the kernels. The definition, in plain torch, is in ifdd_kernels/reference/static_dynamic_split.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "boundary.h"
#include "buffer.h"
#include "indexes.h"
#include "sampling.h"

namespace ifdd::cpu {
namespace {

// Calls phases(begin, end) for clips in units of `unit`, each on one thread; or once for all of them where that would
// leave a thread without work, and the phases divide their own work.
template <class Phases>
void for_clips(int64_t clips, int64_t unit, const Phases& phases) {
  const int64_t units = (clips + unit - 1) / unit, threads = stable::get_num_threads();
  if (units % threads != 0 && units < 4 * threads) return phases(0, clips);
  stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) phases(u * unit, std::min(clips, (u + 1) * unit));
  });
}

// Both groups have T / 2 frames.
SplitInputs sampling_of(const TokenSizes& size, const Tensor& x) {
  return {x.size(0), {size.T, size.N, size.C, size.T / 2, size.T / 2}, x.scalar_type(), false};
}

// Samples of clips [begin, end).
template <class A>
void interpolate_clips(const A* const index[2], int64_t T, bool aligned, int64_t begin, int64_t end,
                       std::vector<Sample<A>>& samples) {
  const int64_t K = T / 2;
  for (int64_t b = begin; b < end; ++b) {
    for (int group = 0; group < 2; ++group) {
      for (int64_t k = 0; k < K; ++k) {
        samples[(2 * b + group) * K + k] = interpolate(index[group][b * K + k], T, aligned);
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> static_dynamic_split(
    const Tensor& x, const Tensor& token_weight, const Tensor& token_bias, const Tensor& static_weight,
    const Tensor& dynamic_weight, const OptionalTensor& static_norm_weight, const OptionalTensor& static_norm_bias,
    const OptionalTensor& dynamic_norm_weight, const OptionalTensor& dynamic_norm_bias, int64_t height, int64_t width,
    int64_t pool, double reach, double eps, bool aligned) {
  const char* op = "static_dynamic_split";
  const TokenSizes size =
      check_index_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const SplitInputs in = sampling_of(size, x);
  const bool norm = check_norms(op, in,
                                {{"static_norm_weight", &static_norm_weight},
                                 {"static_norm_bias", &static_norm_bias},
                                 {"dynamic_norm_weight", &dynamic_norm_weight},
                                 {"dynamic_norm_bias", &dynamic_norm_bias}});
  if (norm && !(eps > 0)) fail(op, "eps", "expected a positive number, got ", eps);
  const int64_t B = in.B, T = size.T, N = size.N, K = T / 2, D = size.tokens();
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  const Tensor rows = dense_channels(x);
  const Tensor frames[2] = {empty(x, {B, K, N, size.C}, in.dtype), empty(x, {B, K, N, size.C}, in.dtype)};
  const Tensor index[2] = {empty(x, {B, K}, acc_dtype), empty(x, {B, K}, acc_dtype)};
  const Tensor correlation = empty(x, {B, T, T}, acc_dtype);
  const Tensor tokens = empty(x, {2, B, T, D}, acc_dtype);
  const Tensor stats = norm ? empty(x, {B, T, N, 2}, acc_dtype) : empty(x, {0}, acc_dtype);
  const Tensor weight[2] = {accumulable(static_weight), accumulable(dynamic_weight)};
  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    A *before = mutable_data<A>(tokens), *after = before + B * T * D, *pairs = mutable_data<A>(correlation);
    const A* positions[2] = {data<A>(index[0]), data<A>(index[1])};
    const Tokenizer<E> tokenizer(size, rows, token_weight, token_bias);
    const OffsetsForward<A> offsets{{T, reach, pairs, {data<A>(weight[0]), data<A>(weight[1])}},
                                    {mutable_data<A>(index[0]), mutable_data<A>(index[1])}};
    std::vector<Sample<A>> samples(B * T);
    const OptionalTensor* weights[2] = {&static_norm_weight, &dynamic_norm_weight};
    const OptionalTensor* biases[2] = {&static_norm_bias, &dynamic_norm_bias};
    const SplitNorms<A> norms(norm, weights, biases);
    const SplitForward<E> sampling = split_call<E>(in, rows, samples, norms, static_cast<A>(eps), frames, stats);
    for_clips(B, 1, [&](int64_t begin, int64_t end) {
      tokenizer.forward(begin * T, end * T, before, after);
      correlate_clips(after + begin * T * D, end - begin, T, D, 1.0 / static_cast<double>(size.C),
                      pairs + begin * T * T);
      find_indexes(offsets, begin, end);
      interpolate_clips(positions, T, aligned, begin, end, samples);
      sample_frames(sampling, begin * N, end * N);
    });
  });
  return {frames[0], frames[1], index[0], index[1], correlation, tokens, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> static_dynamic_split_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& grad_static_index,
    const Tensor& grad_dynamic_index, const Tensor& grad_correlation, const Tensor& x, const Tensor& token_weight,
    const Tensor& token_bias, const Tensor& static_weight, const Tensor& dynamic_weight,
    const OptionalTensor& static_norm_weight, const OptionalTensor& dynamic_norm_weight, const Tensor& static_index,
    const Tensor& dynamic_index, const Tensor& correlation, const Tensor& tokens, const Tensor& stats, int64_t height,
    int64_t width, int64_t pool, double reach, bool aligned) {
  const char* op = "static_dynamic_split_backward";
  const TokenSizes size =
      check_index_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const SplitInputs in = sampling_of(size, x);
  const int64_t B = in.B, T = size.T, N = size.N, K = T / 2, D = size.tokens();
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  check_tensor(op, "grad_static_frames", grad_static, {B, K, N, size.C}, {in.dtype});
  check_tensor(op, "grad_dynamic_frames", grad_dynamic, {B, K, N, size.C}, {in.dtype});
  check_tensor(op, "grad_static_index", grad_static_index, {B, K}, {acc_dtype});
  check_tensor(op, "grad_dynamic_index", grad_dynamic_index, {B, K}, {acc_dtype});
  check_tensor(op, "grad_correlation", grad_correlation, {B, T, T}, {acc_dtype});
  const bool norm =
      check_norms(op, in, {{"static_norm_weight", &static_norm_weight}, {"dynamic_norm_weight", &dynamic_norm_weight}});
  check_tensor(op, "static_index", static_index, {B, K}, {acc_dtype});
  check_tensor(op, "dynamic_index", dynamic_index, {B, K}, {acc_dtype});
  check_tensor(op, "correlation", correlation, {B, T, T}, {acc_dtype});
  check_tensor(op, "tokens", tokens, {2, B, T, D}, {acc_dtype});
  if (norm) {
    check_tensor(op, "stats", stats, {B, T, N, 2}, {acc_dtype});
  } else {
    check_tensor(op, "stats", stats, {0}, {acc_dtype});
  }

  const Tensor rows = dense_channels(x);
  const Tensor grads[2] = {as_contiguous(grad_static), as_contiguous(grad_dynamic)};
  const Tensor given[2] = {as_contiguous(grad_static_index), as_contiguous(grad_dynamic_index)};
  const Tensor direct = as_contiguous(grad_correlation);
  const Tensor index[2] = {as_contiguous(static_index), as_contiguous(dynamic_index)};
  const Tensor saved_pairs = as_contiguous(correlation), saved_tokens = as_contiguous(tokens);
  const Tensor saved_stats = as_contiguous(stats);
  const Tensor weight[2] = {accumulable(static_weight), accumulable(dynamic_weight)};
  const Tensor grad_x = empty(x, {B, T, N, size.C}, in.dtype);
  const Tensor grad_weight[2] = {empty(x, {K, T * T}, acc_dtype), empty(x, {K, T * T}, acc_dtype)};
  const Tensor grad_token_weight = empty(x, {size.S, size.C}, acc_dtype);
  const Tensor grad_token_bias = empty(x, {size.S}, acc_dtype);
  Tensor grad_norm[4];  // weight and bias of static, weight and bias of dynamic; empty without norms
  for (Tensor& grad : grad_norm) grad = norm ? empty(x, {size.C}, acc_dtype) : empty(x, {0}, in.dtype);
  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const A *before = data<A>(saved_tokens), *after = before + B * T * D;
    const A* positions[2] = {data<A>(index[0]), data<A>(index[1])};
    std::vector<Sample<A>> samples(B * T);
    interpolate_clips(positions, T, aligned, 0, B, samples);
    const OptionalTensor* weights[2] = {&static_norm_weight, &dynamic_norm_weight};
    const SplitNorms<A> norms(norm, weights, nullptr);
    const SamplingBackward<E> sampling(in, rows, samples, norms, saved_stats, grads, grad_x);

    Buffer<A> grad_static_total(B * K), grad_dynamic_total(B * K), grad_tokens(B * T * D);
    A* index_totals[2] = {grad_static_total.data(), grad_dynamic_total.data()};
    const A* index_grads[2] = {index_totals[0], index_totals[1]};
    const IndexesBackward<A> indexes(B, {T, reach, data<A>(saved_pairs), {data<A>(weight[0]), data<A>(weight[1])}},
                                     index_grads, data<A>(direct));
    const Tokenizer<E> tokenizer(size, rows, token_weight, token_bias);
    const TokenizerBackward<E> frames(tokenizer, before, grad_tokens.data(), mutable_data<E>(grad_x), true);
    for_clips(B, std::max<int64_t>(1, frames.frames_per_chunk / T), [&](int64_t begin, int64_t end) {
      sampling.run(begin, end);
      sampling.sum_indexes(begin, end, index_totals);
      for (int group = 0; group < 2; ++group) {
        for (int64_t i = begin * K; i < end * K; ++i) index_totals[group][i] += data<A>(given[group])[i];
      }
      indexes.run(begin, end);
      correlate_clips_backward(indexes.total.data() + begin * T * T, after + begin * T * D, end - begin, T, D,
                               1.0 / static_cast<double>(size.C), grad_tokens.data() + begin * T * D);
      frames.run(begin * T / frames.frames_per_chunk,
                 (end * T + frames.frames_per_chunk - 1) / frames.frames_per_chunk);
    });
    for (int group = 0; group < 2; ++group) indexes.weight_gradient(group, mutable_data<A>(grad_weight[group]));
    frames.sum(mutable_data<A>(grad_token_weight), mutable_data<A>(grad_token_bias));
    if (norm) sampling.sum_norms(grad_norm);
  });

  const auto norm_grad = [&](const OptionalTensor& like, int64_t row) {
    return norm ? converted(grad_norm[row], like->scalar_type()) : grad_norm[row];
  };
  return {grad_x,
          converted(grad_token_weight, token_weight.scalar_type()),
          converted(grad_token_bias, token_bias.scalar_type()),
          converted(grad_weight[0], static_weight.scalar_type()),
          converted(grad_weight[1], dynamic_weight.scalar_type()),
          norm_grad(static_norm_weight, 0),
          norm_grad(static_norm_weight, 1),
          norm_grad(dynamic_norm_weight, 2),
          norm_grad(dynamic_norm_weight, 3)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("static_dynamic_split", IFDD_BOX(&static_dynamic_split));
  m.impl("static_dynamic_split_backward", IFDD_BOX(&static_dynamic_split_backward));
}

}  // namespace ifdd::cpu
