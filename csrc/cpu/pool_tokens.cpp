// ifdd::pool_tokens and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/pool_tokens.cpp; the definition, in plain torch, in ifdd_kernels/reference/pool_tokens.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../common/pool_tokens.h"
#include "boundary.h"
#include "buffer.h"
#include "kernels/pool_tokens.h"
#include "kernels/sum_rows.h"
#include "tensor.h"

namespace ifdd::cpu {
namespace {

namespace stable = torch::stable;

constexpr int kParts = 3;  // q, k, v
using OptionalTensor = std::optional<Tensor>;

struct Inputs {
  PoolSizes size[kParts];
  ScalarType dtype;
};

Grid grid_of(const Triple& value) { return {value[0], value[1], value[2]}; }

Inputs check_inputs(const char* op, const Tensor& qkv, const OptionalTensor& key_value, const Triple& grid,
                    const Triple& key_value_grid, int64_t heads, const Triple& stride_q, const Triple& stride_kv) {
  const auto check_rows = [op](const char* argument, const Tensor& tensor) {
    check_tensor(op, argument, tensor, {-1, -1, -1},
                 {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  };
  const int64_t d = check_tokens(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv, check_rows);
  Inputs inputs{{}, qkv.scalar_type()};
  for (int part = 0; part < kParts; ++part) {
    const Grid in = grid_of(part > 0 ? key_value_grid : grid);
    // A longer stride than the axis selects the same single cell.
    const Grid given = grid_of(part > 0 ? stride_kv : stride_q);
    const Grid stride{std::min(given.t, in.t), std::min(given.y, in.y), std::min(given.x, in.x)};
    const Grid out{(in.t - 1) / stride.t + 1, (in.y - 1) / stride.y + 1, (in.x - 1) / stride.x + 1};
    inputs.size[part] = {qkv.size(0), heads, d, in, out, stride};
  }
  return inputs;
}

void check_parameters(const char* op, const Inputs& in, const Tensor* const (&weights)[kParts],
                      std::initializer_list<std::pair<const char*, const Tensor*>> norms) {
  static constexpr const char* kNames[kParts] = {"weight_q", "weight_k", "weight_v"};
  const int64_t d = in.size[0].d;
  for (int part = 0; part < kParts; ++part) {
    check_parameter(op, kNames[part], *weights[part], {d, 1, 3, 3, 3}, in.dtype);
  }
  for (const auto& [argument, tensor] : norms) check_parameter(op, argument, *tensor, {d}, in.dtype);
}

// The tensor itself if its rows of channels are dense, whatever its other strides; else a copy.
Tensor dense_rows(const Tensor& tensor) {
  return tensor.stride(tensor.dim() - 1) == 1 || tensor.size(tensor.dim() - 1) == 1 ? tensor
                                                                                    : stable::contiguous(tensor);
}

// The tensors that q, k and v lie in, or their gradients: one, or one for q and one for both k and v.
struct Packed {
  Tensor of_query;
  OptionalTensor of_key_value;

  const Tensor& tensor(int part) const { return part > 0 && of_key_value ? *of_key_value : of_query; }
  // Rows of a part; `base` is the data of its tensor.
  template <class T>
  TokenRows<T> rows(T* base, const PoolSizes& size, int part) const {
    const int64_t place = part > 0 && of_key_value ? part - 1 : part;
    return {base + place * size.heads * size.d, tensor(part).stride(0), tensor(part).stride(1), size.d};
  }
};

Packed packed_rows(const Tensor& qkv, const OptionalTensor& key_value) {
  return {dense_rows(qkv), key_value ? OptionalTensor(dense_rows(*key_value)) : std::nullopt};
}

// Rows of (B, 1 + N', heads, d).
template <class T>
TokenRows<T> pooled_rows(T* base, const Tensor& tensor) {
  return {base, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// (d, 1, 3, 3, 3) as (27, padded(d)): the channels of a tap side by side.
template <class A>
void transpose_weight(const Tensor& weight, bool mirror, A* out) {
  const Tensor source = accumulable(weight);
  const int64_t d = weight.size(0), pad = padded(d);
  const A* from = data<A>(source);
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    const int64_t read = mirror ? tap - tap % 3 + 2 - tap % 3 : tap;
    for (int64_t c = 0; c < d; ++c) out[tap * pad + c] = from[c * kTaps + read];
    std::fill(out + tap * pad + d, out + (tap + 1) * pad, A(0));
  }
}

template <class A>
void pad_row(const Tensor& row, A* out) {
  const Tensor source = accumulable(row);
  std::fill(std::copy_n(data<A>(source), row.size(0), out), out + padded(row.size(0)), A(0));
}

// Units of work a thread takes at least: about as much as starting it costs.
int64_t grain(int64_t work_per_unit) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_per_unit)); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pool_tokens(
    const Tensor& qkv, const OptionalTensor& key_value, const Tensor& weight_q, const Tensor& weight_k,
    const Tensor& weight_v, const Tensor& norm_weight_q, const Tensor& norm_bias_q, const Tensor& norm_weight_k,
    const Tensor& norm_bias_k, const Tensor& norm_weight_v, const Tensor& norm_bias_v, const Triple& grid,
    const Triple& key_value_grid, int64_t heads, const Triple& stride_q, const Triple& stride_kv, double eps) {
  const char* op = "pool_tokens";
  const Inputs in = check_inputs(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv);
  const Tensor* const weights[kParts] = {&weight_q, &weight_k, &weight_v};
  const Tensor* const norm_weights[kParts] = {&norm_weight_q, &norm_weight_k, &norm_weight_v};
  const Tensor* const norm_biases[kParts] = {&norm_bias_q, &norm_bias_k, &norm_bias_v};
  check_parameters(op, in, weights,
                   {{"norm_weight_q", &norm_weight_q},
                    {"norm_bias_q", &norm_bias_q},
                    {"norm_weight_k", &norm_weight_k},
                    {"norm_bias_k", &norm_bias_k},
                    {"norm_weight_v", &norm_weight_v},
                    {"norm_bias_v", &norm_bias_v}});
  if (!(eps > 0)) fail(op, "eps", "expected a positive number, got ", eps);

  const Packed tokens = packed_rows(qkv, key_value);
  Tensor pooled[kParts], stats[kParts];
  for (int part = 0; part < kParts; ++part) {
    const PoolSizes& size = in.size[part];
    pooled[part] = empty(qkv, {size.B, 1 + size.out_cells(), size.heads, size.d}, in.dtype);
    stats[part] = empty(qkv, {size.B, 1 + size.out_cells(), size.heads, 2}, accumulation_dtype(in.dtype));
  }
  dispatch(in.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const auto kernel = IFDD_SELECT(pool_forward<T>);
    for (int part = 0; part < kParts; ++part) {
      const PoolSizes& size = in.size[part];
      const int64_t pad = padded(size.d);
      const Scratch<A> parameters((kTaps + 2) * pad);
      transpose_weight(*weights[part], false, parameters.get());
      pad_row(*norm_weights[part], parameters.get() + kTaps * pad);
      pad_row(*norm_biases[part], parameters.get() + (kTaps + 1) * pad);
      PoolForward<T> call{};
      call.size = size;
      call.x = tokens.rows(data<T>(tokens.tensor(part)), size, part);
      call.weight = parameters.get();
      call.norm_weight = parameters.get() + kTaps * pad;
      call.norm_bias = parameters.get() + (kTaps + 1) * pad;
      call.eps = static_cast<A>(eps);
      call.out = pooled_rows(mutable_data<T>(pooled[part]), pooled[part]);
      call.stats = mutable_data<A>(stats[part]);
      const int64_t work = size.out.t * size.out.x * pad * kTaps;
      stable::parallel_for(0, size.B * size.heads * size.out.y, grain(work), [&](int64_t begin, int64_t end) {
        const Scratch<A> scratch(scratch_size<T>(size));
        kernel(call, begin, end, scratch.get());
      });
    }
  });
  return {pooled[0], pooled[1], pooled[2], stats[0], stats[1], stats[2]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pool_tokens_backward(
    const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v, const Tensor& qkv,
    const OptionalTensor& key_value, const Tensor& weight_q, const Tensor& weight_k, const Tensor& weight_v,
    const Tensor& norm_weight_q, const Tensor& norm_weight_k, const Tensor& norm_weight_v, const Tensor& stats_q,
    const Tensor& stats_k, const Tensor& stats_v, const Triple& grid, const Triple& key_value_grid, int64_t heads,
    const Triple& stride_q, const Triple& stride_kv) {
  const char* op = "pool_tokens_backward";
  const Inputs in = check_inputs(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv);
  const Tensor* const weights[kParts] = {&weight_q, &weight_k, &weight_v};
  const Tensor* const norm_weights[kParts] = {&norm_weight_q, &norm_weight_k, &norm_weight_v};
  check_parameters(
      op, in, weights,
      {{"norm_weight_q", &norm_weight_q}, {"norm_weight_k", &norm_weight_k}, {"norm_weight_v", &norm_weight_v}});
  const Tensor* const given_grads[kParts] = {&grad_q, &grad_k, &grad_v};
  const Tensor* const given_stats[kParts] = {&stats_q, &stats_k, &stats_v};
  static constexpr const char* kGradNames[kParts] = {"grad_query", "grad_key", "grad_value"};
  static constexpr const char* kStatsNames[kParts] = {"stats_q", "stats_k", "stats_v"};
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  int64_t most_cells = 0, most_bands = 0;
  for (int part = 0; part < kParts; ++part) {
    const PoolSizes& size = in.size[part];
    const int64_t rows = 1 + size.out_cells();
    check_tensor(op, kGradNames[part], *given_grads[part], {size.B, rows, size.heads, size.d}, {in.dtype});
    check_tensor(op, kStatsNames[part], *given_stats[part], {size.B, rows, size.heads, 2}, {acc_dtype});
    most_cells = std::max(most_cells, size.out_cells());
    most_bands = std::max(most_bands, size.out.y);
  }

  const int64_t B = in.size[0].B, d = in.size[0].d, pad = padded(d), sums = (kTaps + 2) * pad;
  const Packed tokens = packed_rows(qkv, key_value);
  Packed grads{empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2)}, in.dtype), std::nullopt};
  if (key_value) {
    grads.of_key_value = empty(qkv, {key_value->size(0), key_value->size(1), key_value->size(2)}, in.dtype);
  }
  // One buffer each, used by q, k and v in turn.
  const Tensor grad_u = empty(qkv, {B, heads, most_cells, pad}, acc_dtype);
  const Tensor partial = empty(qkv, {B * most_bands, kTaps + 2, pad}, acc_dtype);
  const Tensor sum = empty(qkv, {kTaps + 2, pad}, acc_dtype);
  Tensor grad_weight[kParts], grad_norm_weight[kParts], grad_norm_bias[kParts];

  dispatch(in.dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const auto norm_kernel = IFDD_SELECT(pool_backward_norm<T>);
    const auto input_kernel = IFDD_SELECT(pool_backward_input<T>);
    const auto sum_kernel = IFDD_SELECT(sum_rows<A>);
    for (int part = 0; part < kParts; ++part) {
      const PoolSizes& size = in.size[part];
      const Tensor grad = dense_rows(*given_grads[part]);
      const Tensor stats = stable::contiguous(*given_stats[part]);
      const Scratch<A> parameters((2 * kTaps + 1) * pad);
      transpose_weight(*weights[part], false, parameters.get());
      transpose_weight(*weights[part], true, parameters.get() + kTaps * pad);
      pad_row(*norm_weights[part], parameters.get() + 2 * kTaps * pad);
      PoolBackward<T> call{};
      call.size = size;
      call.x = tokens.rows(data<T>(tokens.tensor(part)), size, part);
      call.grad = pooled_rows(data<T>(grad), grad);
      call.weight = parameters.get();
      call.weight_mirror = parameters.get() + kTaps * pad;
      call.norm_weight = parameters.get() + 2 * kTaps * pad;
      call.stats = data<A>(stats);
      call.grad_u = mutable_data<A>(grad_u);
      call.partial = mutable_data<A>(partial);
      call.grad_x = grads.rows(mutable_data<T>(grads.tensor(part)), size, part);

      const int64_t bands = size.B * size.out.y;
      const int64_t norm_work = size.heads * size.out.t * size.out.x * pad * 2 * kTaps;
      stable::parallel_for(0, bands, grain(norm_work), [&](int64_t begin, int64_t end) {
        const Scratch<A> scratch(scratch_size<T>(size));
        norm_kernel(call, begin, end, scratch.get());
      });
      const int64_t input_work = size.in.t * size.in.x * pad * 3;
      stable::parallel_for(0, size.B * size.heads * size.in.y, grain(input_work), [&](int64_t begin, int64_t end) {
        const Scratch<A> scratch(kTile * pad);
        input_kernel(call, begin, end, scratch.get());
      });
      stable::parallel_for(0, sums, grain(bands), [&](int64_t begin, int64_t end) {
        sum_kernel(call.partial, bands, sums, begin, end, mutable_data<A>(sum));
      });

      const ScalarType weight_dtype = weights[part]->scalar_type(), norm_dtype = norm_weights[part]->scalar_type();
      const Tensor taps = empty(qkv, {d, 1, 3, 3, 3}, acc_dtype);
      const Tensor norm[2] = {empty(qkv, {d}, acc_dtype), empty(qkv, {d}, acc_dtype)};
      const A* from = data<A>(sum);
      for (int64_t c = 0; c < d; ++c) {
        for (int64_t tap = 0; tap < kTaps; ++tap) mutable_data<A>(taps)[c * kTaps + tap] = from[tap * pad + c];
        for (int64_t i = 0; i < 2; ++i) mutable_data<A>(norm[i])[c] = from[(kTaps + i) * pad + c];
      }
      grad_weight[part] = stable::to(taps, weight_dtype);
      grad_norm_weight[part] = stable::to(norm[0], norm_dtype);
      grad_norm_bias[part] = stable::to(norm[1], norm_dtype);
    }
  });
  return {grads.of_query,    grads.of_key_value ? *grads.of_key_value : empty(qkv, {0}, in.dtype),
          grad_weight[0],    grad_weight[1],
          grad_weight[2],    grad_norm_weight[0],
          grad_norm_bias[0], grad_norm_weight[1],
          grad_norm_bias[1], grad_norm_weight[2],
          grad_norm_bias[2]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("pool_tokens", IFDD_BOX(&pool_tokens));
  m.impl("pool_tokens_backward", IFDD_BOX(&pool_tokens_backward));
}

}  // namespace ifdd::cpu
