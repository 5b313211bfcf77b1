// ifdd::split_frames and its backward on CUDA. The definition, in plain torch, is in
// ifdd_kernels/reference/split_frames.py; bytes, traps and what was rejected are in docs/kernels/split_frames.md.
#include <optional>
#include <tuple>

#include "cuda/rows.h"
#include "cuda/sums.h"

namespace ifdd::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

// Where the output frames are sampled. Indexes are floats, or integers where `frame` is set instead of `position`.
struct Indexes {
  const float* position[2];
  const int64_t* frame[2];
  int64_t T, Ks, Kd;
  float excess, shift;  // p = position * (1 + excess) - shift

  IFDD_DEVICE int64_t count() const { return Ks + Kd; }
  IFDD_DEVICE bool gather() const { return frame[0] != nullptr; }
};

// y = (1 - fraction) x[first] + fraction x[second].
struct Sample {
  int first, second;
  float fraction;
  float rate;  // dp / di, zero where p is clamped

  template <int N>
  IFDD_DEVICE void blend(const float (&a)[N], const float (&b)[N], float (&out)[N]) const {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = fraction == 0 ? a[i] : (1 - fraction) * a[i] + fraction * b[i];
  }
};

// Sample of output k of clip b, static outputs first. A frame number out of range, which no launch can refuse without
// waiting for the GPU, gives NaN instead of reading elsewhere; so does a NaN position.
IFDD_DEVICE Sample sample_of(const Indexes& in, int64_t b, int64_t k) {
  const int group = k < in.Ks ? 0 : 1;
  const int64_t place = group == 0 ? b * in.Ks + k : b * in.Kd + (k - in.Ks);
  const int last = static_cast<int>(in.T) - 1;
  const float nan = bits_float(0x7fc00000u);
  if (in.gather()) {
    const int64_t t = in.frame[group][place];
    if (t < 0 || t > last) return {0, 0, nan, 0};
    return {static_cast<int>(t), static_cast<int>(t), 0, 0};
  }
  const float index = in.position[group][place];
  if (index != index) return {0, 0, nan, 0};
  // A whole frame number is split off first: what is left is small, and so are its roundings. Beyond these bounds p is
  // clamped anyway; an infinite index would leave nothing.
  const float bounded = fminf(fmaxf(index, -1.0f), static_cast<float>(last + 1));
  const float whole = floorf(bounded), rest = (bounded - whole) + bounded * in.excess - in.shift;
  if (whole + rest <= 0) return {0, last > 0 ? 1 : 0, 0, 0};
  if (whole + rest >= static_cast<float>(last)) return {last, last, 0, 0};
  const float step = floorf(rest);
  const int first = static_cast<int>(whole + step);
  return {first, first + 1, rest - step, 1 + in.excess};
}

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

template <class T>
struct SplitForward {
  Indexes index;
  int64_t B, N, C;
  Frames<T> x;
  const float* weight[2];  // null without norms
  const float* bias[2];
  float eps;
  T* frames[2];
  float* stats;  // (B, K, N, 2)
};

// A block takes a clip and a token, a warp every fourth of its output rows: the T input rows are read from memory once
// and by the other warps from the first-level cache.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) split_frames_kernel(SplitForward<T> op) {
  const int64_t K = op.index.count();
  for (int64_t cell = blockIdx.x; cell < op.B * op.N; cell += gridDim.x) {
    const int64_t b = cell / op.N, n = cell % op.N;
    for (int64_t k = warp_index(); k < K; k += kWarps) {
      const int group = k < op.index.Ks ? 0 : 1;
      const int64_t slot = group == 0 ? b * op.index.Ks + k : b * op.index.Kd + (k - op.index.Ks);
      const Sample sample = sample_of(op.index, b, k);
      const T* first = op.x.row(b, sample.first, n);
      const T* second = op.x.row(b, sample.second, n);
      T* out = op.frames[group] + (slot * op.N + n) * op.C;
      const auto form = [&](int64_t c, float (&y)[V]) {
        float a_row[V], b_row[V];
        load(first + c, a_row);
        load(second + c, b_row);
        sample.blend(a_row, b_row, y);
      };
      WarpRow<V> row;
      row.keep(op.C, form);
      float mean = 0, rstd = 1;
      if (op.weight[0] != nullptr) {
        float sum = 0;
        row.each(op.C, form, [&](int64_t, const float (&y)[V]) {
#pragma unroll
          for (int i = 0; i < V; ++i) sum += y[i];
        });
        mean = warp_sum(sum) / static_cast<float>(op.C);
        float square = 0;
        row.each(op.C, form, [&](int64_t, const float (&y)[V]) {
#pragma unroll
          for (int i = 0; i < V; ++i) square += (y[i] - mean) * (y[i] - mean);
        });
        rstd = 1 / sqrtf(warp_sum(square) / static_cast<float>(op.C) + op.eps);
        if (lane_index() == 0) {
          float* stats = op.stats + ((b * K + k) * op.N + n) * 2;
          stats[0] = mean;
          stats[1] = rstd;
        }
      }
      row.each(op.C, form, [&](int64_t c, const float (&y)[V]) {
        float result[V];
        if (op.weight[0] != nullptr) {
          float weight[V], bias[V];
          load_floats(op.weight[group] + c, weight);
          load_floats(op.bias[group] + c, bias);
#pragma unroll
          for (int i = 0; i < V; ++i) result[i] = (y[i] - mean) * rstd * weight[i] + bias[i];
        } else {
#pragma unroll
          for (int i = 0; i < V; ++i) result[i] = y[i];
        }
        store(out + c, result);
      });
    }
  }
}

template <class T>
struct SplitBackward {
  Indexes index;
  int64_t B, N, C;
  Frames<T> x;
  const T* grad_frames[2];
  const float* weight[2];  // null without norms
  const float* stats;
  T* grad_x;
  float* index_partial;  // (B, parts, spans, K), null for frame numbers
  float* norm_partial;   // (B, parts, 4, C), null without norms
  int64_t parts, tokens_per_part, spans;
};

// Channels one block of backward forms gradients of: bounds its shared memory.
constexpr int kSpan = 1024;

// Shared memory of backward: per output its sample and the two sums of its norm, per warp and output a part of the
// index gradient, and the sums of the norms' gradients over the block's tokens.
struct BackwardShared {
  Sample* sample;
  float* mean_grad;
  float* mean_product;
  float* along;
  float* norm;  // (4, kSpan)

  static IFDD_DEVICE BackwardShared at(unsigned char* memory, int64_t K) {
    BackwardShared shared{};
    shared.sample = reinterpret_cast<Sample*>(memory);
    shared.norm = reinterpret_cast<float*>(shared.sample + K);
    shared.mean_grad = shared.norm + 4 * kSpan;
    shared.mean_product = shared.mean_grad + K;
    shared.along = shared.mean_product + K;
    return shared;
  }
  static size_t bytes(int64_t K) {
    return K * (sizeof(Sample) + (2 + kWarps) * sizeof(float)) + 4 * kSpan * sizeof(float);
  }
};

// One token of one clip in backward.
template <class T, int V>
struct TokenRows {
  const SplitBackward<T>& op;
  int64_t b, n;

  IFDD_DEVICE int group(int64_t k) const { return k < op.index.Ks ? 0 : 1; }

  IFDD_DEVICE void grad(int64_t k, int64_t c, float (&out)[V]) const {
    const int64_t slot = group(k) == 0 ? b * op.index.Ks + k : b * op.index.Kd + (k - op.index.Ks);
    load(op.grad_frames[group(k)] + (slot * op.N + n) * op.C + c, out);
  }

  // The normalised row, sampled again from x; `slope` is dy / dp before the norm.
  IFDD_DEVICE void normalised(const Sample& sample, int64_t k, int64_t c, float (&out)[V], float (&slope)[V]) const {
    float first[V], second[V];
    load(op.x.row(b, sample.first, n) + c, first);
    load(op.x.row(b, sample.second, n) + c, second);
    sample.blend(first, second, out);
    float mean = 0, rstd = 1;
    if (op.stats != nullptr) {
      const float* stats = op.stats + ((b * op.index.count() + k) * op.N + n) * 2;
      mean = stats[0];
      rstd = stats[1];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      out[i] = (out[i] - mean) * rstd;
      slope[i] = second[i] - first[i];
    }
  }

  IFDD_DEVICE float rstd(int64_t k) const { return op.stats[((b * op.index.count() + k) * op.N + n) * 2 + 1]; }
};

// A block takes a range of a clip's tokens and a span of channels. For each token its warps first form the two sums
// over channels that the norm of an output row needs, then its threads, each on its own channels, the gradients of
// kFrames input frames at a time from all output rows that use one of them: a small dense product that needs no
// atomics.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4) split_frames_backward_kernel(SplitBackward<T> op) {
  constexpr int kFrames = V == 8 ? 4 : 8;  // registers: kFrames * V sums a thread
  const int64_t K = op.index.count(), unit = blockIdx.x / op.spans, span = blockIdx.x % op.spans;
  const int64_t b = unit / op.parts, part = unit % op.parts;
  const bool norm = op.stats != nullptr, positions = op.index_partial != nullptr;
  const int64_t first_channel = span * kSpan;
  const int channels = static_cast<int>(op.C - first_channel < kSpan ? op.C - first_channel : kSpan);
  const BackwardShared shared = BackwardShared::at(dynamic_shared(), K);

  for (int64_t k = threadIdx.x; k < K; k += kThreads) shared.sample[k] = sample_of(op.index, b, k);
  for (int64_t i = threadIdx.x; i < K * kWarps; i += kThreads) shared.along[i] = 0;
  for (int i = threadIdx.x; i < 4 * kSpan; i += kThreads) shared.norm[i] = 0;
  __syncthreads();

  const int64_t end = (part + 1) * op.tokens_per_part < op.N ? (part + 1) * op.tokens_per_part : op.N;
  for (int64_t n = part * op.tokens_per_part; n < end; ++n) {
    const TokenRows<T, V> rows{op, b, n};
    if (norm) {
      for (int64_t k = warp_index(); k < K; k += kWarps) {
        float grad_sum = 0, product_sum = 0;
        for (int64_t c = lane_index() * V; c < op.C; c += kWarp * V) {
          float grad[V], y[V], slope[V], weight[V];
          rows.grad(k, c, grad);
          rows.normalised(shared.sample[k], k, c, y, slope);
          load_floats(op.weight[rows.group(k)] + c, weight);
#pragma unroll
          for (int i = 0; i < V; ++i) {
            grad_sum += grad[i] * weight[i];
            product_sum += grad[i] * weight[i] * y[i];
          }
        }
        grad_sum = warp_sum(grad_sum);
        product_sum = warp_sum(product_sum);
        if (lane_index() == 0) {
          shared.mean_grad[k] = grad_sum / static_cast<float>(op.C);
          shared.mean_product[k] = product_sum / static_cast<float>(op.C);
        }
      }
      __syncthreads();
    }
    // All lanes of a warp take every turn, so that they can add up together.
    for (int turn = warp_index() * kWarp * V; turn < channels; turn += kThreads * V) {
      const int place = turn + lane_index() * V;
      const bool inside = place < channels;
      const int64_t c = first_channel + place;
      for (int64_t t0 = 0; t0 < op.index.T; t0 += kFrames) {
        float sum[kFrames][V] = {};
        for (int group = 0; group < 2; ++group) {
          float grad_weight[V] = {}, grad_bias[V] = {};
          const int64_t first_k = group == 0 ? 0 : op.index.Ks, last_k = group == 0 ? op.index.Ks : K;
          for (int64_t k = first_k; k < last_k; ++k) {
            const Sample sample = shared.sample[k];
            if (sample.second < t0 || sample.first >= t0 + kFrames) continue;
            const bool owner = sample.first >= t0;  // the one group of frames that counts output k once
            float along = 0;
            if (inside) {
              float grad[V], y[V], slope[V];
              rows.grad(k, c, grad);
              rows.normalised(sample, k, c, y, slope);
              if (norm) {
                float weight[V];
                load_floats(op.weight[group] + c, weight);
                const float rstd = rows.rstd(k), mean_grad = shared.mean_grad[k], product = shared.mean_product[k];
#pragma unroll
                for (int i = 0; i < V; ++i) {
                  if (owner) {
                    grad_weight[i] += grad[i] * y[i];
                    grad_bias[i] += grad[i];
                  }
                  grad[i] = rstd * (grad[i] * weight[i] - mean_grad - y[i] * product);
                }
              }
#pragma unroll
              for (int i = 0; i < V; ++i) along += grad[i] * slope[i];
#pragma unroll
              for (int t = 0; t < kFrames; ++t) {
                const float of_first = t0 + t == sample.first ? 1 - sample.fraction : 0;
                const float factor =
                    t0 + t == sample.second && sample.second != sample.first ? sample.fraction : of_first;
                if (factor != 0) {
#pragma unroll
                  for (int i = 0; i < V; ++i) sum[t][i] += factor * grad[i];
                }
              }
            }
            if (positions && owner && sample.rate != 0) {
              along = warp_sum(along);
              if (lane_index() == 0) shared.along[k * kWarps + warp_index()] += along * sample.rate;
            }
          }
          if (norm && inside) {
            // Channels are this thread's alone, and so are their sums.
            float* sums[2] = {shared.norm + (2 * group) * kSpan + place, shared.norm + (2 * group + 1) * kSpan + place};
#pragma unroll
            for (int i = 0; i < V; ++i) {
              sums[0][i] += grad_weight[i];
              sums[1][i] += grad_bias[i];
            }
          }
        }
#pragma unroll
        for (int t = 0; t < kFrames; ++t) {
          if (inside && t0 + t < op.index.T)
            store(op.grad_x + ((b * op.index.T + t0 + t) * op.N + n) * op.C + c, sum[t]);
        }
      }
    }
    if (norm) __syncthreads();  // the sums of this token's rows have been read
  }
  __syncthreads();
  if (positions) {
    for (int64_t k = threadIdx.x; k < K; k += kThreads) {
      float along = 0;
      for (int w = 0; w < kWarps; ++w) along += shared.along[k * kWarps + w];
      op.index_partial[blockIdx.x * K + k] = along;
    }
  }
  if (norm) {
    for (int i = threadIdx.x; i < 4 * channels; i += kThreads) {
      const int row = i / channels, place = i % channels;
      op.norm_partial[(unit * 4 + row) * op.C + first_channel + place] = shared.norm[row * kSpan + place];
    }
  }
}

// 96 KB of shared memory in backward, of the 99 that a block may have on sm_86 and sm_89.
constexpr int64_t kMostOutputs = 2048;

// Blocks that backward splits a batch into: about four on each multiprocessor of a large GPU.
constexpr int64_t kBackwardBlocks = 512;

struct Inputs {
  int64_t B, T, N, C, Ks, Kd;
  ScalarType dtype;
  bool gather;
};

Inputs check_inputs(const char* op, const Tensor& x, const Tensor& static_index, const Tensor& dynamic_index) {
  check_activation(op, "x", x, x, {-1, -1, -1, -1});
  const auto check_index = [&](const char* argument, const Tensor& index) {
    check_tensor(op, argument, index, x, {x.size(0), -1}, {ScalarType::Float, ScalarType::Long});
    if (index.size(1) < 1) {
      fail(op, argument, "expected at least one index per clip, got shape ", shape_text(index.sizes()));
    }
  };
  check_index("static_index", static_index);
  check_index("dynamic_index", dynamic_index);
  if (static_index.scalar_type() != dynamic_index.scalar_type()) {
    fail(op, "dynamic_index", "expected the dtype of static_index, ", dtype_name(static_index.scalar_type()), ", got ",
         dtype_name(dynamic_index.scalar_type()));
  }
  const bool gather = static_index.scalar_type() == ScalarType::Long;
  const int64_t frames = gather ? 1 : 2;
  if (x.size(1) < frames || x.size(1) > std::numeric_limits<int32_t>::max()) {
    fail(op, "x", "expected at least ", frames, " frames for ", gather ? "integer" : "floating", " indexes, got shape ",
         shape_text(x.sizes()));
  }
  if (static_index.size(1) + dynamic_index.size(1) > kMostOutputs) {
    fail(op, "static_index", "expected at most ", kMostOutputs,
         " indexes in both groups (samples in shared memory), got ", static_index.size(1), " and ",
         dynamic_index.size(1));
  }
  if (x.size(3) < 1) fail(op, "x", "expected at least one channel, got shape ", shape_text(x.sizes()));
  return {x.size(0),       x.size(1), x.size(2), x.size(3), static_index.size(1), dynamic_index.size(1),
          x.scalar_type(), gather};
}

// The tensors of both norms, or of none.
bool check_norms(const char* op, const Inputs& in, const Tensor& x,
                 std::initializer_list<std::pair<const char*, const OptionalTensor*>> norms) {
  const bool given = norms.begin()->second->has_value();
  for (const auto& [argument, tensor] : norms) {
    if (tensor->has_value() != given) {
      fail(op, argument, "expected all norm tensors or none, got ", tensor->has_value() ? "this one" : "None", " but ",
           norms.begin()->first, given ? " is given" : " is None");
    }
    if (given) check_parameter(op, argument, **tensor, x, {in.C}, in.dtype);
  }
  return given;
}

// The indexes as the kernels read them; the tensors must outlive the launch.
Indexes indexes_of(const Inputs& in, const Tensor& static_index, const Tensor& dynamic_index, bool aligned) {
  Indexes index{};
  index.T = in.T;
  index.Ks = in.Ks;
  index.Kd = in.Kd;
  index.excess = aligned || in.gather ? 0.0f : static_cast<float>(1.0 / static_cast<double>(in.T - 1));
  index.shift = aligned ? 0.0f : 0.5f;
  const Tensor* const given[2] = {&static_index, &dynamic_index};
  for (int group = 0; group < 2; ++group) {
    if (in.gather) {
      index.frame[group] = data<int64_t>(*given[group]);
    } else {
      index.position[group] = data<float>(*given[group]);
    }
  }
  return index;
}

std::tuple<Tensor, Tensor, Tensor> split_frames(const Tensor& x, const Tensor& static_index,
                                                const Tensor& dynamic_index, const OptionalTensor& static_norm_weight,
                                                const OptionalTensor& static_norm_bias,
                                                const OptionalTensor& dynamic_norm_weight,
                                                const OptionalTensor& dynamic_norm_bias, double eps, bool aligned) {
  const char* op = "split_frames";
  const Inputs in = check_inputs(op, x, static_index, dynamic_index);
  const bool norm = check_norms(op, in, x,
                                {{"static_norm_weight", &static_norm_weight},
                                 {"static_norm_bias", &static_norm_bias},
                                 {"dynamic_norm_weight", &dynamic_norm_weight},
                                 {"dynamic_norm_bias", &dynamic_norm_bias}});
  const CurrentDevice device(x);
  const Tensor rows = dense_rows(x);
  const Tensor index[2] = {stable::contiguous(static_index), stable::contiguous(dynamic_index)};
  const Tensor frames[2] = {stable::new_empty(x, {in.B, in.Ks, in.N, in.C}),
                            stable::new_empty(x, {in.B, in.Kd, in.N, in.C})};
  const Tensor stats = norm ? stable::new_empty(x, {in.B, in.Ks + in.Kd, in.N, 2}, ScalarType::Float)
                            : stable::new_empty(x, {0}, ScalarType::Float);
  Tensor weight[2], bias[2];
  if (norm) {
    weight[0] = as_float(*static_norm_weight);
    weight[1] = as_float(*dynamic_norm_weight);
    bias[0] = as_float(*static_norm_bias);
    bias[1] = as_float(*dynamic_norm_bias);
  }
  dispatch_dtype(op, in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWide = kVector<T>;
    SplitForward<T> call{};
    call.index = indexes_of(in, index[0], index[1], aligned);
    call.B = in.B;
    call.N = in.N;
    call.C = in.C;
    call.x = frames_of<T>(rows);
    call.eps = static_cast<float>(eps);
    bool fits = rows_fit<kWide>(call.x, in.C);
    for (int group = 0; group < 2; ++group) {
      call.frames[group] = mutable_data<T>(frames[group]);
      fits = fits && vector_fits<kWide>(call.frames[group]);
      if (norm) {
        call.weight[group] = data<float>(weight[group]);
        call.bias[group] = data<float>(bias[group]);
        fits = fits && floats_fit<kWide>(call.weight[group]) && floats_fit<kWide>(call.bias[group]);
      }
    }
    call.stats = norm ? mutable_data<float>(stats) : nullptr;
    dispatch_vector<T>(fits, [&](auto vector) {
      constexpr int V = decltype(vector)::value;
      const int64_t cells = std::min<int64_t>(in.B * in.N, std::numeric_limits<int32_t>::max());
      run(op, device, split_frames_kernel<T, V>, dim3(grid_size(op, cells)), kThreads, 0, call);
    });
  });
  return {frames[0], frames[1], stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> split_frames_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& x, const Tensor& static_index,
    const Tensor& dynamic_index, const OptionalTensor& static_norm_weight, const OptionalTensor& dynamic_norm_weight,
    const Tensor& stats, bool aligned) {
  const char* op = "split_frames_backward";
  const Inputs in = check_inputs(op, x, static_index, dynamic_index);
  const int64_t K = in.Ks + in.Kd;
  check_tensor(op, "grad_static_frames", grad_static, x, {in.B, in.Ks, in.N, in.C}, {in.dtype});
  check_tensor(op, "grad_dynamic_frames", grad_dynamic, x, {in.B, in.Kd, in.N, in.C}, {in.dtype});
  const bool norm = check_norms(
      op, in, x, {{"static_norm_weight", &static_norm_weight}, {"dynamic_norm_weight", &dynamic_norm_weight}});
  if (norm) {
    check_tensor(op, "stats", stats, x, {in.B, K, in.N, 2}, {ScalarType::Float});
  } else {
    check_tensor(op, "stats", stats, x, {0}, {ScalarType::Float});
  }
  const CurrentDevice device(x);
  const Tensor rows = dense_rows(x), saved = stable::contiguous(stats);
  const Tensor index[2] = {stable::contiguous(static_index), stable::contiguous(dynamic_index)};
  const Tensor grads[2] = {stable::contiguous(grad_static), stable::contiguous(grad_dynamic)};
  Tensor weight[2];
  if (norm) {
    weight[0] = as_float(*static_norm_weight);
    weight[1] = as_float(*dynamic_norm_weight);
  }
  const Tensor grad_x = stable::new_empty(x, {in.B, in.T, in.N, in.C});
  const Chunks chunks = chunks_of(in.N, std::max<int64_t>(1, kBackwardBlocks / std::max<int64_t>(1, in.B)));
  const int64_t spans = (in.C + kSpan - 1) / kSpan, parts = in.B * chunks.count;
  const Tensor index_partial = stable::new_empty(x, {in.gather ? 0 : parts * spans, K}, ScalarType::Float);
  const Tensor norm_partial = stable::new_empty(x, {norm ? parts : 0, 4, in.C}, ScalarType::Float);

  dispatch_dtype(op, in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWide = kVector<T>;
    SplitBackward<T> call{};
    call.index = indexes_of(in, index[0], index[1], aligned);
    call.B = in.B;
    call.N = in.N;
    call.C = in.C;
    call.x = frames_of<T>(rows);
    call.stats = norm ? data<float>(saved) : nullptr;
    call.grad_x = mutable_data<T>(grad_x);
    call.index_partial = in.gather ? nullptr : mutable_data<float>(index_partial);
    call.norm_partial = norm ? mutable_data<float>(norm_partial) : nullptr;
    call.parts = chunks.count;
    call.tokens_per_part = chunks.length;
    call.spans = spans;
    bool fits = rows_fit<kWide>(call.x, in.C) && vector_fits<kWide>(call.grad_x);
    for (int group = 0; group < 2; ++group) {
      call.grad_frames[group] = data<T>(grads[group]);
      fits = fits && vector_fits<kWide>(call.grad_frames[group]);
      call.weight[group] = norm ? data<float>(weight[group]) : nullptr;
      fits = fits && (!norm || floats_fit<kWide>(call.weight[group]));
    }
    dispatch_vector<T>(fits, [&](auto vector) {
      constexpr int V = decltype(vector)::value;
      run(op, device, split_frames_backward_kernel<T, V>, dim3(grid_size(op, parts * spans)), kThreads,
          BackwardShared::bytes(K), call);
    });
  });

  const auto none = [&](ScalarType dtype) { return stable::new_empty(x, {0}, dtype); };
  const auto index_grad = [&](int64_t count) {
    return in.gather ? none(ScalarType::Float) : stable::new_empty(x, {in.B, count}, ScalarType::Float);
  };
  const auto norm_grad = [&](const OptionalTensor& like) {
    return norm ? stable::new_empty(x, {in.C}, like->scalar_type()) : none(in.dtype);
  };
  const Tensor grad_index[2] = {index_grad(in.Ks), index_grad(in.Kd)};
  const Tensor grad_norm[4] = {norm_grad(static_norm_weight), norm_grad(static_norm_weight),
                               norm_grad(dynamic_norm_weight), norm_grad(dynamic_norm_weight)};
  // What does not exist has no groups.
  const auto index_sum = [&](int group, int64_t first, int64_t count) {
    const float* from = in.gather ? nullptr : data<float>(index_partial) + first;
    return ColumnSum{from,
                     in.gather ? 0 : in.B,
                     chunks.count * spans,
                     K,
                     count,
                     grad_index[group].mutable_data_ptr(),
                     ScalarType::Float};
  };
  const auto norm_sum = [&](int row) {
    const float* from = norm ? data<float>(norm_partial) + row * in.C : nullptr;
    return ColumnSum{
        from, norm ? 1 : 0, parts, 4 * in.C, in.C, grad_norm[row].mutable_data_ptr(), grad_norm[row].scalar_type()};
  };
  column_sums(op, device,
              {index_sum(0, 0, in.Ks), index_sum(1, in.Ks, in.Kd), norm_sum(0), norm_sum(1), norm_sum(2), norm_sum(3)});
  return {grad_x, grad_index[0], grad_index[1], grad_norm[0], grad_norm[1], grad_norm[2], grad_norm[3]};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("split_frames", TORCH_BOX(&split_frames));
  m.impl("split_frames_backward", TORCH_BOX(&split_frames_backward));
}

}  // namespace ifdd::cuda
