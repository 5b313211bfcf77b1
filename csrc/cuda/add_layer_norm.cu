// ifdd::add_layer_norm and its backward on CUDA. The definition, in plain torch, is in
// ifdd_kernels/reference/add_layer_norm.py; bytes and what was rejected are in docs/kernels/add_layer_norm.md.
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/rows.h"
#include "cuda/sums.h"

namespace ifdd::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
// Values of a row that a lane holds.
constexpr int kHeld = 32;
constexpr int64_t kMostChannels = kHeld * kWarp;  // NORMED_CHANNELS in ifdd_kernels/_cuda_limits.py
constexpr int64_t kMostBlocks = 1 << 20;
// Blocks of backward, each of which leaves the sums over its rows.
constexpr int64_t kMostChunks = 1024;

// A parameter of the norm in either of its dtypes.
struct Parameter {
  const void* values;
  ScalarType dtype;

  template <int V>
  IFDD_DEVICE void at(int64_t c, float (&out)[V]) const {
    if (dtype == ScalarType::Half) {
      load(static_cast<const __half*>(values) + c, out);
    } else if (dtype == ScalarType::BFloat16) {
      load(static_cast<const __nv_bfloat16*>(values) + c, out);
    } else {
      load_floats(static_cast<const float*>(values) + c, out);
    }
  }
};

// A team of Width lanes takes a row, each lane every Width-th vector of V channels, up to 32 channels. So rows of 96
// channels leave no lane of a warp without work, and a parameter or a sum belongs to one place of one lane.
template <int V, int Width>
struct Team {
  static constexpr int kVectors = kHeld / V;
  static constexpr int kRows = kThreads / Width;  // of a block at once
  int64_t channels;

  IFDD_DEVICE int row() const { return static_cast<int>(threadIdx.x) / Width; }
  IFDD_DEVICE int64_t channel(int i) const {
    return (static_cast<int64_t>(i) * Width + static_cast<int>(threadIdx.x) % Width) * V;
  }
  template <class Body>
  IFDD_DEVICE void each(const Body& body) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (channel(i) < channels) body(i, channel(i));
    }
  }
  IFDD_DEVICE float mean(float part) const { return warp_sum<Width>(part) / static_cast<float>(channels); }
};

IFDD_DEVICE float factor_of(const bool* kept, float factor, int64_t sample) {
  return kept == nullptr ? 1.0f : kept[sample] ? factor : 0.0f;
}

template <class T>
struct AddNorm {
  const T *x, *branch;
  const bool* kept;  // by sample; null: all, undivided
  float factor;      // of the branch of a sample that is kept
  Parameter weight, bias;
  T *added, *normed;
  float *mean, *rstd;
  int64_t rows, sample_rows, channels;
  float eps;

  IFDD_DEVICE float branch_factor(int64_t row) const { return factor_of(kept, factor, row / sample_rows); }
};

template <class T, int V, int Width>
__global__ void __launch_bounds__(kThreads) add_layer_norm_kernel(AddNorm<T> op) {
  using Rows = Team<V, Width>;
  const Rows team{op.channels};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * Rows::kRows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * Rows::kRows; first < op.rows; first += stride) {
    const int64_t row = first + team.row();
    const bool within = row < op.rows;  // all lanes of a warp take part in its sums
    float y[Rows::kVectors][V] = {};
    float sum = 0;
    if (within) {
      const float factor = op.branch_factor(row);
      team.each([&](int i, int64_t c) {
        float stream[V], branch[V];
        load(op.x + row * op.channels + c, stream);
        load(op.branch + row * op.channels + c, branch);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          y[i][j] = stream[j] + factor * branch[j];
          sum += y[i][j];
        }
        store(op.added + row * op.channels + c, y[i]);
      });
    }
    const float mean = team.mean(sum);
    float square = 0;
    team.each([&](int i, int64_t) {
#pragma unroll
      for (int j = 0; j < V; ++j) square += (y[i][j] - mean) * (y[i][j] - mean);
    });
    const float rstd = 1 / sqrtf(team.mean(square) + op.eps);
    if (!within) continue;
    if (team.channel(0) == 0) {
      op.mean[row] = mean;
      op.rstd[row] = rstd;
    }
    team.each([&](int i, int64_t c) {
      float weight[V], bias[V], result[V];
      op.weight.at(c, weight);
      op.bias.at(c, bias);
#pragma unroll
      for (int j = 0; j < V; ++j) result[j] = (y[i][j] - mean) * rstd * weight[j] + bias[j];
      store(op.normed + row * op.channels + c, result);
    });
  }
}

template <class T>
struct AddNormBackward {
  const T *grad_added, *grad_normed, *added;  // grad_added: null where nobody used the sum
  Parameter weight;
  const bool* kept;  // as in forward
  float factor;
  const float *mean, *rstd;
  T *grad_x, *grad_branch;
  float* partial;  // (blocks, 2, C)
  int64_t rows, rows_per_block, sample_rows, channels;

  IFDD_DEVICE float branch_factor(int64_t row) const { return factor_of(kept, factor, row / sample_rows); }
};

template <class T, int V, int Width>
__global__ void __launch_bounds__(kThreads) add_layer_norm_backward_kernel(AddNormBackward<T> op) {
  using Rows = Team<V, Width>;
  const Rows team{op.channels};
  float weight_sum[Rows::kVectors][V] = {}, bias_sum[Rows::kVectors][V] = {};
  const int64_t begin = blockIdx.x * op.rows_per_block;
  const int64_t end = begin + op.rows_per_block < op.rows ? begin + op.rows_per_block : op.rows;
  for (int64_t first = begin; first < end; first += Rows::kRows) {
    const int64_t row = first + team.row();
    const bool within = row < end;
    float grad[Rows::kVectors][V] = {}, unit[Rows::kVectors][V] = {};
    float sum = 0, along = 0, rstd = 0;
    if (within) {
      const float mean = op.mean[row];
      rstd = op.rstd[row];
      team.each([&](int i, int64_t c) {
        load(op.grad_normed + row * op.channels + c, grad[i]);
        load(op.added + row * op.channels + c, unit[i]);
        float weight[V];
        op.weight.at(c, weight);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          unit[i][j] = (unit[i][j] - mean) * rstd;
          weight_sum[i][j] += grad[i][j] * unit[i][j];
          bias_sum[i][j] += grad[i][j];
          grad[i][j] *= weight[j];
          sum += grad[i][j];
          along += grad[i][j] * unit[i][j];
        }
      });
    }
    sum = team.mean(sum);
    along = team.mean(along);
    if (!within) continue;
    const float factor = op.branch_factor(row);
    team.each([&](int i, int64_t c) {
      float past[V] = {};
      if (op.grad_added != nullptr) load(op.grad_added + row * op.channels + c, past);
#pragma unroll
      for (int j = 0; j < V; ++j) grad[i][j] = rstd * (grad[i][j] - sum - unit[i][j] * along) + past[j];
      store(op.grad_x + row * op.channels + c, grad[i]);
#pragma unroll
      for (int j = 0; j < V; ++j) grad[i][j] *= factor;
      store(op.grad_branch + row * op.channels + c, grad[i]);
    });
  }
  // The teams of a warp by exchanges, then the warps by shared memory; both in a fixed order.
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // (warps, 2, C)
  float* own = sums + warp_index() * 2 * op.channels;
#pragma unroll
  for (int i = 0; i < Rows::kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
#pragma unroll
      for (int distance = kWarp / 2; distance >= Width; distance /= 2) {
        weight_sum[i][j] += __shfl_xor_sync(kAllLanes, weight_sum[i][j], distance);
        bias_sum[i][j] += __shfl_xor_sync(kAllLanes, bias_sum[i][j], distance);
      }
    }
  }
  if (lane_index() < Width) {
    team.each([&](int i, int64_t c) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        own[c + j] = weight_sum[i][j];
        own[op.channels + c + j] = bias_sum[i][j];
      }
    });
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < 2 * op.channels; c += kThreads) {
    float total = sums[c];
    for (int w = 1; w < kWarps; ++w) total += sums[w * 2 * op.channels + c];
    op.partial[blockIdx.x * 2 * op.channels + c] = total;
  }
}

Parameter parameter_of(const Tensor& tensor) { return {tensor.const_data_ptr(), tensor.scalar_type()}; }

template <int V>
bool parameter_fits(const Parameter& parameter) {
  if (parameter.dtype == ScalarType::Float) return floats_fit<V>(static_cast<const float*>(parameter.values));
  return vector_fits<V>(static_cast<const __half*>(parameter.values));
}

// A tensor on the device of the stream, of a dtype and a shape of any rank.
void check_shape(const char* op, const char* argument, const Tensor& tensor, const Tensor& stream, ScalarType dtype,
                 const std::vector<int64_t>& shape) {
  if (!on_device(tensor) || tensor.get_device_index() != stream.get_device_index()) {
    fail(op, argument, "expected a tensor on the CUDA device of the first argument, got one on another device");
  }
  check_dtype(op, argument, tensor, {dtype});
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end())) {
    fail(op, argument, "expected shape ", shape_text(shape), ", got ", shape_text(sizes));
  }
}

// The sizes of a stream (B, ..., C).
struct Sizes {
  int64_t rows, sample_rows, channels;
  std::vector<int64_t> shape, leading;
};

Sizes check_inputs(const char* op, const char* argument, const Tensor& x, const Tensor& weight,
                   const OptionalTensor& kept, double keep) {
  if (!on_device(x)) fail(op, argument, "expected a tensor on a CUDA device, got one on another device");
  check_dtype(op, argument, x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
  const auto sizes = x.sizes();
  if (sizes.size() < 2 || sizes[sizes.size() - 1] < 1) {
    fail(op, argument, "expected shape (B, ..., C) with at least one channel, got ", shape_text(sizes));
  }
  Sizes in{1, 1, sizes[sizes.size() - 1], {sizes.begin(), sizes.end()}, {sizes.begin(), sizes.end() - 1}};
  if (in.channels > kMostChannels) {
    fail(op, argument, "expected channels <= ", kMostChannels, " (the CUDA kernels hold them in registers), got ",
         in.channels);
  }
  for (size_t i = 1; i < in.leading.size(); ++i) in.sample_rows *= in.leading[i];
  in.rows = in.leading[0] * in.sample_rows;
  check_parameter(op, "weight", weight, x, {in.channels}, x.scalar_type());
  if (kept.has_value()) check_tensor(op, "kept", *kept, x, {in.leading[0]}, {ScalarType::Bool});
  if (!(keep > 0)) fail(op, "keep", "expected a positive number, got ", keep);
  return in;
}

// Calls f with the elements of an access and the least team that holds a row; single elements take the whole warp.
template <class T, class F>
void dispatch_team(const char* op, bool fits, int64_t channels, const F& f) {
  if (!fits) {
    f(std::integral_constant<int, 1>{}, std::integral_constant<int, kWarp>{});
    return;
  }
  dispatch_at_least<4, 8, 16, kWarp>(op, "x", "channels / 32", (channels + kHeld - 1) / kHeld,
                                     [&](auto width) { f(std::integral_constant<int, kVector<T>>{}, width); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm(const Tensor& x, const Tensor& branch, const Tensor& weight,
                                                          const Tensor& bias, const OptionalTensor& kept, double keep,
                                                          double eps) {
  const char* op = "add_layer_norm";
  const Sizes in = check_inputs(op, "x", x, weight, kept, keep);
  check_shape(op, "branch", branch, x, x.scalar_type(), in.shape);
  check_tensor(op, "bias", bias, x, {in.channels}, {weight.scalar_type()});
  const CurrentDevice device(x);
  const Tensor stream = stable::contiguous(x), added_branch = stable::contiguous(branch);
  const Tensor dense_weight = stable::contiguous(weight), dense_bias = stable::contiguous(bias);
  const OptionalTensor samples = kept.has_value() ? OptionalTensor(stable::contiguous(*kept)) : std::nullopt;
  const Tensor added = stable::new_empty(x, in.shape), normed = stable::new_empty(x, in.shape);
  const Tensor mean = stable::new_empty(x, in.leading, ScalarType::Float);
  const Tensor rstd = stable::new_empty(x, in.leading, ScalarType::Float);
  dispatch_dtype(op, x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWide = kVector<T>;
    AddNorm<T> call{};
    call.x = data<T>(stream);
    call.branch = data<T>(added_branch);
    call.kept = samples.has_value() ? data<bool>(*samples) : nullptr;
    call.factor = static_cast<float>(1 / keep);
    call.weight = parameter_of(dense_weight);
    call.bias = parameter_of(dense_bias);
    call.added = mutable_data<T>(added);
    call.normed = mutable_data<T>(normed);
    call.mean = mutable_data<float>(mean);
    call.rstd = mutable_data<float>(rstd);
    call.rows = in.rows;
    call.sample_rows = in.sample_rows;
    call.channels = in.channels;
    call.eps = static_cast<float>(eps);
    const bool fits = vector_fits<kWide>(call.x, in.channels) && vector_fits<kWide>(call.branch) &&
                      vector_fits<kWide>(call.added) && vector_fits<kWide>(call.normed) &&
                      parameter_fits<kWide>(call.weight) && parameter_fits<kWide>(call.bias);
    dispatch_team<T>(op, fits, in.channels, [&](auto vector, auto width) {
      constexpr int V = decltype(vector)::value, W = decltype(width)::value;
      constexpr int64_t kRows = Team<V, W>::kRows;
      const int64_t blocks = std::min((in.rows + kRows - 1) / kRows, kMostBlocks);
      run(op, device, add_layer_norm_kernel<T, V, W>, dim3(grid_size(op, blocks)), kThreads, 0, call);
    });
  });
  return {added, normed, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_backward(const OptionalTensor& grad_added,
                                                                   const Tensor& grad_normed, const Tensor& added,
                                                                   const Tensor& weight, const OptionalTensor& kept,
                                                                   const Tensor& mean, const Tensor& rstd,
                                                                   double keep) {
  const char* op = "add_layer_norm_backward";
  const Sizes in = check_inputs(op, "added", added, weight, kept, keep);
  check_shape(op, "grad_normed", grad_normed, added, added.scalar_type(), in.shape);
  if (grad_added.has_value()) check_shape(op, "grad_added", *grad_added, added, added.scalar_type(), in.shape);
  check_shape(op, "mean", mean, added, ScalarType::Float, in.leading);
  check_shape(op, "rstd", rstd, added, ScalarType::Float, in.leading);
  const CurrentDevice device(added);
  const auto dense = [](const OptionalTensor& tensor) {
    return tensor.has_value() ? OptionalTensor(stable::contiguous(*tensor)) : std::nullopt;
  };
  const OptionalTensor past = dense(grad_added), samples = dense(kept);
  const Tensor grad = stable::contiguous(grad_normed), stream = stable::contiguous(added);
  const Tensor dense_weight = stable::contiguous(weight);
  const Tensor means = stable::contiguous(mean), rstds = stable::contiguous(rstd);
  const Tensor grad_x = stable::new_empty(added, in.shape), grad_branch = stable::new_empty(added, in.shape);
  const Tensor grad_weight = stable::new_empty(weight, {in.channels});
  const Tensor grad_bias = stable::new_empty(weight, {in.channels});
  const Chunks chunks = chunks_of(in.rows, kMostChunks);
  const Tensor partial = stable::new_empty(added, {chunks.count, 2, in.channels}, ScalarType::Float);
  dispatch_dtype(op, added.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWide = kVector<T>;
    AddNormBackward<T> call{};
    call.grad_added = past.has_value() ? data<T>(*past) : nullptr;
    call.grad_normed = data<T>(grad);
    call.added = data<T>(stream);
    call.weight = parameter_of(dense_weight);
    call.kept = samples.has_value() ? data<bool>(*samples) : nullptr;
    call.factor = static_cast<float>(1 / keep);
    call.mean = data<float>(means);
    call.rstd = data<float>(rstds);
    call.grad_x = mutable_data<T>(grad_x);
    call.grad_branch = mutable_data<T>(grad_branch);
    call.partial = mutable_data<float>(partial);
    call.rows = in.rows;
    call.rows_per_block = chunks.length;
    call.sample_rows = in.sample_rows;
    call.channels = in.channels;
    const bool fits = vector_fits<kWide>(call.grad_normed, in.channels) && vector_fits<kWide>(call.grad_added) &&
                      vector_fits<kWide>(call.added) && vector_fits<kWide>(call.grad_x) &&
                      vector_fits<kWide>(call.grad_branch) && parameter_fits<kWide>(call.weight);
    dispatch_team<T>(op, fits, in.channels, [&](auto vector, auto width) {
      constexpr int V = decltype(vector)::value, W = decltype(width)::value;
      run(op, device, add_layer_norm_backward_kernel<T, V, W>, dim3(grid_size(op, chunks.count)), kThreads,
          static_cast<size_t>(kWarps * 2 * in.channels) * sizeof(float), call);
    });
  });
  const auto sum = [&](int which, const Tensor& out) {
    return ColumnSum{data<float>(partial) + which * in.channels,
                     1,
                     chunks.count,
                     2 * in.channels,
                     in.channels,
                     out.mutable_data_ptr(),
                     out.scalar_type()};
  };
  column_sums(op, device, {sum(0, grad_weight), sum(1, grad_bias)});
  return {grad_x, grad_branch, grad_weight, grad_bias};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("add_layer_norm_backward", TORCH_BOX(&add_layer_norm_backward));
}

}  // namespace ifdd::cuda
