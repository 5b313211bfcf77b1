// ifdd::split_index and its backward on CUDA: two launches forward, frames to tokens (tokens.h) and tokens to indexes
// (here). The definition, in plain torch, is in ifdd_kernels/reference/split_index.py.
#include <tuple>

#include "cuda/correlation.h"
#include "cuda/tokens.h"

namespace ifdd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// The offsets of one batch of clips. Group 0 is the static one, softmax(+M), group 1 the dynamic one, softmax(-M).
struct Offsets {
  int frames;
  float reach;
  const float* weight[2];  // (T / 2, T * T)
  float* correlation;      // (B, T, T); only read in backward
  float* attention;        // (B, 2, T, T) scratch: larger than shared memory for long clips, cached for short ones

  // An index into the members would put the whole struct into local memory.
  IFDD_DEVICE const float* weight_of(int group) const { return group == 0 ? weight[0] : weight[1]; }
  IFDD_DEVICE int64_t pairs() const { return static_cast<int64_t>(frames) * frames; }
  IFDD_DEVICE int positions() const { return frames / 2; }
  IFDD_DEVICE float* attention_of(int64_t b, int group) const { return attention + (b * 2 + group) * pairs(); }
};

// Row softmax of both groups of a clip by a block; a warp takes a row.
IFDD_DEVICE void softmax_rows(const Offsets& op, int64_t b) {
  for (int r = warp_index(); r < 2 * op.frames; r += kWarps) {
    const int group = r / op.frames, t = r % op.frames;
    const float sign = group == 0 ? 1.0f : -1.0f;
    const float* in = op.correlation + b * op.pairs() + static_cast<int64_t>(t) * op.frames;
    float* out = op.attention_of(b, group) + static_cast<int64_t>(t) * op.frames;
    float largest = sign * in[lane_index() < op.frames ? lane_index() : 0];
    for (int u = lane_index(); u < op.frames; u += kWarp) largest = Max{}(largest, sign * in[u]);
    largest = warp_max(largest);
    float sum = 0;
    for (int u = lane_index(); u < op.frames; u += kWarp) sum += expf(sign * in[u] - largest);
    const float scale = 1 / warp_sum(sum);
    for (int u = lane_index(); u < op.frames; u += kWarp) out[u] = expf(sign * in[u] - largest) * scale;
  }
}

// tanh(weight . vec(attention)) of output k of a group, by a warp; all lanes get it.
IFDD_DEVICE float offset(const Offsets& op, int64_t b, int group, int k) {
  const float* attention = op.attention_of(b, group);
  const float* weight = op.weight_of(group) + k * op.pairs();
  float sum = 0;
  for (int64_t i = lane_index(); i < op.pairs(); i += kWarp) sum += weight[i] * attention[i];
  return tanhf(warp_sum(sum));
}

// A block takes a clip from its tokens (B, T, D) to its correlation and positions (B, T / 2).
__global__ void __launch_bounds__(kThreads) split_index_kernel(Offsets op, const float* tokens, int64_t D, float scale,
                                                               float* static_index, float* dynamic_index) {
  const int64_t b = blockIdx.x;
  const float* z = tokens + b * op.frames * D;
  for (int64_t tile = warp_index(); tile < correlation_tiles(op.frames); tile += kWarps) {
    correlate_tile(z, op.frames, D, scale, tile, op.correlation + b * op.pairs());
  }
  __syncthreads();
  softmax_rows(op, b);
  __syncthreads();
  for (int i = warp_index(); i < op.frames; i += kWarps) {
    const int group = i / op.positions(), k = i % op.positions();
    const float position = static_cast<float>(2 * k + group) + op.reach * offset(op, b, group, k);
    if (lane_index() == 0) (group == 0 ? static_index : dynamic_index)[b * op.positions() + k] = position;
  }
}

struct OffsetsGradient {
  const float* index[2];     // gradients of the positions, (B, T / 2)
  const float* correlation;  // gradient of the correlation, (B, T, T)
  float* inner;              // (B, 2, T / 2): gradients before the tanh
  float* total;              // (B, T, T): the correlation's whole gradient
};

// A block takes a clip: both softmaxes again, the gradients through tanh, and the correlation's gradient.
__global__ void __launch_bounds__(kThreads) split_index_backward_kernel(Offsets op, OffsetsGradient grad) {
  const int64_t b = blockIdx.x;
  const int K = op.positions();
  softmax_rows(op, b);
  __syncthreads();
  for (int i = warp_index(); i < op.frames; i += kWarps) {
    const int group = i / K, k = i % K;
    const float value = offset(op, b, group, k);
    if (lane_index() == 0)
      grad.inner[b * 2 * K + i] =
          op.reach * (group == 0 ? grad.index[0] : grad.index[1])[b * K + k] * (1 - value * value);
  }
  __syncthreads();
  // Through the softmax of row t: a (g - <g, a>), g = W^T inner. g is formed twice instead of kept.
  for (int t = warp_index(); t < op.frames; t += kWarps) {
    const int64_t row = static_cast<int64_t>(t) * op.frames;
    const auto attention_grad = [&](int group, int u) {
      const float* weight = op.weight_of(group) + row + u;
      const float* inner = grad.inner + (b * 2 + group) * K;
      float sum = 0;
      for (int k = 0; k < K; ++k) sum += inner[k] * weight[k * op.pairs()];
      return sum;
    };
    float mean[2];
    for (int group = 0; group < 2; ++group) {
      const float* attention = op.attention_of(b, group) + row;
      float sum = 0;
      for (int u = lane_index(); u < op.frames; u += kWarp) sum += attention[u] * attention_grad(group, u);
      mean[group] = warp_sum(sum);
    }
    for (int u = lane_index(); u < op.frames; u += kWarp) {
      float total = grad.correlation[b * op.pairs() + row + u];
      for (int group = 0; group < 2; ++group) {
        const float through = op.attention_of(b, group)[row + u] * (attention_grad(group, u) - mean[group]);
        total += group == 0 ? through : -through;
      }
      grad.total[b * op.pairs() + row + u] = total;
    }
  }
}

// grad_weight (T / 2, T * T) of a group: inner^T attention, summed over the clips in order. A thread takes an element.
template <class W>
__global__ void __launch_bounds__(kThreads)
    offset_weight_kernel(Offsets op, const float* inner, int64_t B, int group, W* grad_weight) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int K = op.positions();
  if (place >= K * op.pairs()) return;
  const int64_t k = place / op.pairs(), pair = place % op.pairs();
  float sum = 0;
  for (int64_t b = 0; b < B; ++b) sum += inner[(b * 2 + group) * K + k] * op.attention_of(b, group)[pair];
  grad_weight[place] = narrow<W>(sum);
}

TokenSizes check_inputs(const char* op, const Tensor& x, const Tensor& token_weight, const Tensor& token_bias,
                        const Tensor& static_weight, const Tensor& dynamic_weight, int64_t height, int64_t width,
                        int64_t pool) {
  const TokenSizes size =
      check_tokenizer(op, x, "token_weight", token_weight, "token_bias", token_bias, height, width, pool);
  check_even_frames(op, x);
  const int64_t T = size.T;
  check_parameter(op, "static_weight", static_weight, x, {T / 2, T * T}, x.scalar_type());
  check_parameter(op, "dynamic_weight", dynamic_weight, x, {T / 2, T * T}, x.scalar_type());
  return size;
}

std::tuple<Tensor, Tensor, Tensor> split_index(const Tensor& x, const Tensor& token_weight, const Tensor& token_bias,
                                               const Tensor& static_weight, const Tensor& dynamic_weight,
                                               int64_t height, int64_t width, int64_t pool, double reach) {
  const char* op = "split_index";
  const TokenSizes size =
      check_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const CurrentDevice device(x);
  const auto scratch = [&](std::initializer_list<int64_t> shape) {
    return stable::new_empty(x, shape, ScalarType::Float);
  };
  const Tensor rows = dense_rows(x), weight_rows = as_float(token_weight), bias_row = as_float(token_bias);
  const Tensor weight[2] = {as_float(static_weight), as_float(dynamic_weight)};
  const Tensor index[2] = {scratch({size.B, size.T / 2}), scratch({size.B, size.T / 2})};
  const Tensor correlation = scratch({size.B, size.T, size.T}), attention = scratch({size.B, 2, size.T, size.T});
  const Tensor tokens = scratch({size.B, size.T, size.tokens()});
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_tokens(op, device, tokenizer_of<T>(size, rows, weight_rows, bias_row), nullptr, mutable_data<float>(tokens));
  });
  const Offsets call{size.T,
                     static_cast<float>(reach),
                     {data<float>(weight[0]), data<float>(weight[1])},
                     mutable_data<float>(correlation),
                     mutable_data<float>(attention)};
  run(op, device, split_index_kernel, dim3(grid_size(op, size.B)), kThreads, 0, call, data<float>(tokens),
      static_cast<int64_t>(size.tokens()), 1 / static_cast<float>(size.C), mutable_data<float>(index[0]),
      mutable_data<float>(index[1]));
  return {index[0], index[1], correlation};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> split_index_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& grad_correlation, const Tensor& x,
    const Tensor& token_weight, const Tensor& token_bias, const Tensor& static_weight, const Tensor& dynamic_weight,
    const Tensor& correlation, int64_t height, int64_t width, int64_t pool, double reach) {
  const char* op = "split_index_backward";
  const TokenSizes size =
      check_inputs(op, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool);
  const int64_t B = size.B, frames = size.T, K = frames / 2, D = size.tokens();
  check_tensor(op, "grad_static_index", grad_static, x, {B, K}, {ScalarType::Float});
  check_tensor(op, "grad_dynamic_index", grad_dynamic, x, {B, K}, {ScalarType::Float});
  check_tensor(op, "grad_correlation", grad_correlation, x, {B, frames, frames}, {ScalarType::Float});
  check_tensor(op, "correlation", correlation, x, {B, frames, frames}, {ScalarType::Float});
  const CurrentDevice device(x);
  const auto scratch = [&](std::initializer_list<int64_t> shape) {
    return stable::new_empty(x, shape, ScalarType::Float);
  };
  const Tensor rows = dense_rows(x), weight_rows = as_float(token_weight), bias_row = as_float(token_bias);
  const Tensor weight[2] = {as_float(static_weight), as_float(dynamic_weight)};
  const Tensor grad_index[2] = {stable::contiguous(grad_static), stable::contiguous(grad_dynamic)};
  const Tensor saved = stable::contiguous(correlation), direct = stable::contiguous(grad_correlation);
  const Tensor attention = scratch({B, 2, frames, frames}), inner = scratch({B, 2, K});
  const Tensor total = scratch({B, frames, frames});

  const Offsets call{size.T,
                     static_cast<float>(reach),
                     {data<float>(weight[0]), data<float>(weight[1])},
                     mutable_data<float>(saved),
                     mutable_data<float>(attention)};
  run(op, device, split_index_backward_kernel, dim3(grid_size(op, B)), kThreads, 0, call,
      OffsetsGradient{{data<float>(grad_index[0]), data<float>(grad_index[1])},
                      data<float>(direct),
                      mutable_data<float>(inner),
                      mutable_data<float>(total)});
  const Tensor grad_weight[2] = {stable::new_empty(static_weight, {K, frames * frames}),
                                 stable::new_empty(dynamic_weight, {K, frames * frames})};
  for (int group = 0; group < 2; ++group) {
    dispatch_dtype(op, grad_weight[group].scalar_type(), [&](auto type) {
      using W = typename decltype(type)::type;
      const int64_t blocks = (K * frames * frames + kThreads - 1) / kThreads;
      run(op, device, offset_weight_kernel<W>, dim3(grid_size(op, blocks)), kThreads, 0, call, data<float>(inner), B,
          group, mutable_data<W>(grad_weight[group]));
    });
  }

  // Correlation back to the tokens, tokens back to the frames.
  const Tensor before = scratch({B, frames, D}), tokens = scratch({B, frames, D}),
               grad_tokens = scratch({B, frames, D});
  const Tensor grad_x = stable::new_empty(x, {B, frames, size.N, size.C});
  const Tensor grad_token_weight = stable::new_empty(token_weight, {size.S, size.C});
  const Tensor grad_token_bias = stable::new_empty(token_bias, {size.S});
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const Tokenizer<T> in = tokenizer_of<T>(size, rows, weight_rows, bias_row);
    launch_tokens(op, device, in, mutable_data<float>(before), mutable_data<float>(tokens));
    launch_correlation_backward(op, device, data<float>(total), data<float>(tokens), B, frames, D,
                                1.0 / static_cast<double>(size.C), mutable_data<float>(grad_tokens));
    launch_tokens_backward(op, device, in, {data<float>(grad_tokens), data<float>(before)}, grad_x, grad_token_weight,
                           grad_token_bias);
  });
  return {grad_x, grad_token_weight, grad_token_bias, grad_weight[0], grad_weight[1]};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("split_index", TORCH_BOX(&split_index));
  m.impl("split_index_backward", TORCH_BOX(&split_index_backward));
}

}  // namespace ifdd::cuda
