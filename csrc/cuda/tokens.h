// The tokenizer on CUDA, shared by frame_tokens and split_index: adaptive average pool, 1x1 convolution, GELU.
#pragma once

#include "cuda/rows.h"
#include "cuda/sums.h"

namespace ifdd::cuda {

// Rows are counted in 32 bits, which spares the kernels 64-bit divisions; memory is addressed in 64.
struct TokenSizes {
  int B, T, N, C;
  int H, W, P, S;  // grid, side of the pooled grid, rows of the weight

  __host__ __device__ int cells() const { return P * P; }
  __host__ __device__ int tokens() const { return S * P * P; }
  __host__ __device__ int frames() const { return B * T; }
};

// Cells floor(i size / out) .. ceil((i + 1) size / out) - 1: those that output i of an axis averages. With size and out
// exchanged, the outputs that average cell i.
struct Window {
  int first, last;

  IFDD_DEVICE static Window at(int i, int size, int out) { return {i * size / out, ((i + 1) * size + out - 1) / out}; }
  IFDD_DEVICE int count() const { return last - first; }
};

template <class T>
struct Tokenizer {
  TokenSizes size;
  Frames<T> x;
  const float* weight;  // (S, C)
  const float* bias;    // (S)
};

// Channels c .. c + V - 1 of pooled cell p of a frame (b T + t).
template <int V, class T>
IFDD_DEVICE void pooled_vector(const Tokenizer<T>& in, int frame, int p, int c, float (&out)[V]) {
  const Window rows = Window::at(p / in.size.P, in.size.H, in.size.P);
  const Window columns = Window::at(p % in.size.P, in.size.W, in.size.P);
  const int b = frame / in.size.T, t = frame % in.size.T;
  load(in.x.row(b, t, rows.first * in.size.W + columns.first) + c, out);
  if (rows.count() * columns.count() == 1) return;
  for (int h = rows.first; h < rows.last; ++h) {
    for (int w = columns.first; w < columns.last; ++w) {
      if (h == rows.first && w == columns.first) continue;
      float cell[V];
      load(in.x.row(b, t, h * in.size.W + w) + c, cell);
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] += cell[i];
    }
  }
  const float share = 1 / static_cast<float>(rows.count() * columns.count());
#pragma unroll
  for (int i = 0; i < V; ++i) out[i] *= share;
}

// Phi(v), through erfc: 1 + erf would cancel in the lower tail.
IFDD_DEVICE float normal_cdf(float v) { return 0.5f * erfcf(v * -0.70710678f); }
IFDD_DEVICE float gelu(float v) { return v * normal_cdf(v); }
IFDD_DEVICE float gelu_slope(float v) { return normal_cdf(v) + v * 0.39894228f * expf(-0.5f * v * v); }

constexpr int kTokenThreads = 128;
constexpr int kTokenRows = 8;   // rows of the weight at a time: IFDD has 7
constexpr int kTokenCells = 4;  // pooled cells that share one read of the weight
static_assert(kTokenRows * kTokenCells == kWarp, "a lane finishes each sum");

// A warp forms the products of four pooled cells with eight rows of the weight at a time; a lane finishes one of
// the 32. `before`, the activation's argument, and `tokens` are (B, T, S, P, P); either may be null.
template <class T, int V>
__global__ void __launch_bounds__(kTokenThreads, 4) frame_tokens_kernel(Tokenizer<T> in, float* before, float* tokens) {
  const TokenSizes& size = in.size;
  const int cells = size.frames() * size.cells();
  const int first = (static_cast<int>(blockIdx.x) * (kTokenThreads / kWarp) + warp_index()) * kTokenCells;
  if (first >= cells) return;
  for (int s0 = 0; s0 < size.S; s0 += kTokenRows) {
    float sum[kWarp] = {};
    for (int c = lane_index() * V; c < size.C; c += kWarp * V) {
      float pooled[kTokenCells][V];
#pragma unroll
      for (int i = 0; i < kTokenCells; ++i) {
        const int cell = first + i < cells ? first + i : cells - 1;
        pooled_vector(in, cell / size.cells(), cell % size.cells(), c, pooled[i]);
      }
#pragma unroll
      for (int s = 0; s < kTokenRows; ++s) {
        if (s0 + s >= size.S) break;
        float weight[V];
        load_floats(in.weight + static_cast<int64_t>(s0 + s) * size.C + c, weight);
#pragma unroll
        for (int i = 0; i < kTokenCells; ++i) {
#pragma unroll
          for (int j = 0; j < V; ++j) sum[i * kTokenRows + s] += pooled[i][j] * weight[j];
        }
      }
    }
    float value = warp_sum_scatter(sum);
    const int cell = first + lane_index() / kTokenRows, s = s0 + lane_index() % kTokenRows;
    if (cell >= cells || s >= size.S) continue;
    value += in.bias[s];
    const int64_t place =
        static_cast<int64_t>(cell / size.cells()) * size.tokens() + s * size.cells() + cell % size.cells();
    if (before != nullptr) before[place] = value;
    if (tokens != nullptr) tokens[place] = gelu(value);
  }
}

// The gradients before the activation: what both kernels of the backward read.
struct TokenGradient {
  const float* tokens;  // (B, T, S, P, P)
  const float* before;

  IFDD_DEVICE float at(const TokenSizes& size, int frame, int s, int p) const {
    const int64_t place = static_cast<int64_t>(frame) * size.tokens() + s * size.cells() + p;
    return tokens[place] * gelu_slope(before[place]);
  }
};

constexpr int kGradRows = 4;    // tokens of a frame that share one read of the weight
constexpr int kGradStage = 64;  // rows of the weight between two barriers

struct GradientStage {
  float of[kGradRows][kGradStage];
};

// grad_x: a block takes four tokens of a frame, a thread its channels.
template <class T, int V>
__global__ void __launch_bounds__(kTokenThreads)
    frame_tokens_input_kernel(Tokenizer<T> in, TokenGradient grad, T* grad_x) {
  const TokenSizes& size = in.size;
  const int tiles = (size.N + kGradRows - 1) / kGradRows;
  const int block = static_cast<int>(blockIdx.x), frame = block / tiles, first = block % tiles * kGradRows;
  GradientStage& stage = static_shared<GradientStage>();
  for (int turn = 0; turn < size.C; turn += kTokenThreads * V) {
    const int c = turn + static_cast<int>(threadIdx.x) * V;
    float sum[kGradRows][V] = {};
    for (int s0 = 0; s0 < size.S; s0 += kGradStage) {
      const int rows = size.S - s0 < kGradStage ? size.S - s0 : kGradStage;
      for (int i = static_cast<int>(threadIdx.x); i < kGradRows * rows; i += kTokenThreads) {
        const int n = first + i / rows, s = s0 + i % rows;
        float value = 0;
        if (n < size.N) {
          const Window up = Window::at(n / size.W, size.P, size.H), across = Window::at(n % size.W, size.P, size.W);
          for (int p = up.first; p < up.last; ++p) {
            for (int q = across.first; q < across.last; ++q) {
              const int count = Window::at(p, size.H, size.P).count() * Window::at(q, size.W, size.P).count();
              value += grad.at(size, frame, s, p * size.P + q) / static_cast<float>(count);
            }
          }
        }
        stage.of[i / rows][i % rows] = value;
      }
      __syncthreads();
      if (c < size.C) {
        for (int s = 0; s < rows; ++s) {
          float weight[V];
          load_floats(in.weight + static_cast<int64_t>(s0 + s) * size.C + c, weight);
#pragma unroll
          for (int r = 0; r < kGradRows; ++r) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum[r][i] += stage.of[r][s] * weight[i];
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < kGradRows; ++r) {
      if (c < size.C && first + r < size.N)
        store(grad_x + (static_cast<int64_t>(frame) * size.N + first + r) * size.C + c, sum[r]);
    }
  }
}

constexpr int kWeightStage = 32;  // pooled cells between two barriers

struct WeightStage {
  float of[kWeightStage][kTokenRows];
};

// Sums of a range of pooled cells for grad_weight and grad_bias: a thread keeps eight rows of its channels.
template <class T, int V>
__global__ void __launch_bounds__(kTokenThreads)
    frame_tokens_weight_kernel(Tokenizer<T> in, TokenGradient grad, Chunks chunks, float* weight_partial,
                               float* bias_partial) {
  const TokenSizes& size = in.size;
  const int slices = (size.S + kTokenRows - 1) / kTokenRows,
            spans = (size.C + kTokenThreads * V - 1) / (kTokenThreads * V);
  const int64_t unit = blockIdx.x / spans, chunk = unit / slices, length = chunks.length;
  const int span = blockIdx.x % spans, s0 = static_cast<int>(unit % slices) * kTokenRows;
  const int cells = size.frames() * size.cells(), c = (span * kTokenThreads + static_cast<int>(threadIdx.x)) * V;
  const int begin = static_cast<int>(chunk * length);
  const int end = static_cast<int>((chunk + 1) * length < cells ? (chunk + 1) * length : cells);
  WeightStage& stage = static_shared<WeightStage>();
  float sum[kTokenRows][V] = {}, bias = 0;
  for (int first = begin; first < end; first += kWeightStage) {
    const int count = end - first < kWeightStage ? end - first : kWeightStage;
    for (int i = static_cast<int>(threadIdx.x); i < count * kTokenRows; i += kTokenThreads) {
      const int cell = first + i / kTokenRows, s = s0 + i % kTokenRows;
      stage.of[i / kTokenRows][i % kTokenRows] =
          s < size.S ? grad.at(size, cell / size.cells(), s, cell % size.cells()) : 0;
    }
    __syncthreads();
    if (threadIdx.x < kTokenRows) {
      for (int i = 0; i < count; ++i) bias += stage.of[i][threadIdx.x];
    }
    if (c < size.C) {
      for (int i = 0; i < count; ++i) {
        float pooled[V];
        pooled_vector(in, (first + i) / size.cells(), (first + i) % size.cells(), c, pooled);
#pragma unroll
        for (int s = 0; s < kTokenRows; ++s) {
#pragma unroll
          for (int j = 0; j < V; ++j) sum[s][j] += stage.of[i][s] * pooled[j];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < kTokenRows; ++s) {
    if (c < size.C && s0 + s < size.S) store_floats(weight_partial + (chunk * size.S + s0 + s) * size.C + c, sum[s]);
  }
  if (span == 0 && threadIdx.x < kTokenRows && s0 + static_cast<int>(threadIdx.x) < size.S) {
    bias_partial[chunk * size.S + s0 + threadIdx.x] = bias;
  }
}

// --- host ------------------------------------------------------------------------------------------------------------

// Rows, and values of a row, that are counted in 32 bits: with room for a block's worth more, and for their double.
constexpr int64_t kMostCount = int64_t{1} << 30;

// Refuses sizes whose product is above that.
inline void check_counts(const char* op, const char* argument, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (size > 0 && product > kMostCount / size) {
      fail(op, argument, "too large: the CUDA kernels count up to 2^30 rows, and as many values of a row");
    }
    product *= size;
  }
}

// Frames on a (height, width) grid to be pooled to (pool, pool); S is left to the caller.
inline TokenSizes check_grid(const char* op, const Tensor& x, int64_t height, int64_t width, int64_t pool) {
  check_activation(op, "x", x, x, {-1, -1, -1, -1});
  const auto check_side = [&](const char* argument, int64_t side) {
    constexpr int64_t kMost = 32767;  // products of two sides stay below 2^30
    if (side < 1 || side > kMost) fail(op, argument, "expected 1 to ", kMost, ", got ", side);
  };
  check_side("height", height);
  check_side("width", width);
  check_side("pool", pool);
  if (x.size(2) != height * width) {
    fail(op, "x", "expected N = height * width = ", height, " * ", width, " tokens a frame, got shape ",
         shape_text(x.sizes()));
  }
  if (x.size(3) < 1) fail(op, "x", "expected at least one channel, got shape ", shape_text(x.sizes()));
  check_counts(op, "x", {x.size(0) * x.size(1), std::max(x.size(2), pool * pool)});
  check_counts(op, "x", {x.size(3)});
  const auto narrowed = [](int64_t size) { return static_cast<int>(size); };
  return {narrowed(x.size(0)), narrowed(x.size(1)), narrowed(x.size(2)), narrowed(x.size(3)),
          narrowed(height),    narrowed(width),     narrowed(pool),      0};
}

inline void check_even_frames(const char* op, const Tensor& x) {
  if (x.size(1) < 2 || x.size(1) % 2 != 0) {
    fail(op, "x", "expected an even number of frames, at least 2, got shape ", shape_text(x.sizes()));
  }
}

inline TokenSizes check_tokenizer(const char* op, const Tensor& x, const char* weight_name, const Tensor& weight,
                                  const char* bias_name, const Tensor& bias, int64_t height, int64_t width,
                                  int64_t pool) {
  TokenSizes size = check_grid(op, x, height, width, pool);
  check_parameter(op, weight_name, weight, x, {-1, size.C}, x.scalar_type());
  if (weight.size(0) < 1) fail(op, weight_name, "expected at least one row, got shape ", shape_text(weight.sizes()));
  check_counts(op, weight_name, {weight.size(0), pool * pool});
  size.S = static_cast<int>(weight.size(0));
  check_parameter(op, bias_name, bias, x, {size.S}, x.scalar_type());
  return size;
}

// The tokenizer of one call; x has dense channels, weight and bias are contiguous floats. All outlive the launches.
template <class T>
Tokenizer<T> tokenizer_of(const TokenSizes& size, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return {size, frames_of<T>(x), data<float>(weight), data<float>(bias)};
}

template <class T>
bool tokenizer_fits(const Tokenizer<T>& in) {
  constexpr int kWide = kVector<T>;
  return rows_fit<kWide>(in.x, in.size.C) && floats_fit<kWide>(in.weight);
}

template <class T>
void launch_tokens(const char* op, const CurrentDevice& device, const Tokenizer<T>& in, float* before, float* tokens) {
  constexpr int64_t kCells = kTokenThreads / kWarp * kTokenCells;
  const int64_t blocks = (static_cast<int64_t>(in.size.frames()) * in.size.cells() + kCells - 1) / kCells;
  dispatch_vector<T>(tokenizer_fits(in), [&](auto vector) {
    run(op, device, frame_tokens_kernel<T, decltype(vector)::value>, dim3(grid_size(op, blocks)), kTokenThreads, 0, in,
        before, tokens);
  });
}

// Blocks that add up grad_weight: their partial sums stay below the size of x for the network's shapes.
constexpr int64_t kWeightChunks = 128;

// grad_x (B, T, N, C), grad_weight (S, C) and grad_bias (S).
template <class T>
void launch_tokens_backward(const char* op, const CurrentDevice& device, const Tokenizer<T>& in,
                            const TokenGradient& grad, const Tensor& grad_x, const Tensor& grad_weight,
                            const Tensor& grad_bias) {
  const TokenSizes& size = in.size;
  const Chunks chunks = chunks_of(static_cast<int64_t>(size.frames()) * size.cells(), kWeightChunks);
  const Tensor weight_partial = stable::new_empty(grad_x, {chunks.count, size.S, size.C}, ScalarType::Float);
  const Tensor bias_partial = stable::new_empty(grad_x, {chunks.count, size.S}, ScalarType::Float);
  const int64_t tiles = (size.N + kGradRows - 1) / kGradRows, slices = (size.S + kTokenRows - 1) / kTokenRows;
  T* out = mutable_data<T>(grad_x);
  dispatch_vector<T>(tokenizer_fits(in) && vector_fits<kVector<T>>(out), [&](auto vector) {
    constexpr int V = decltype(vector)::value;
    const int64_t spans = (size.C + kTokenThreads * V - 1) / (kTokenThreads * V);
    run(op, device, frame_tokens_input_kernel<T, V>, dim3(grid_size(op, size.frames() * tiles)), kTokenThreads, 0, in,
        grad, out);
    run(op, device, frame_tokens_weight_kernel<T, V>, dim3(grid_size(op, chunks.count * slices * spans)), kTokenThreads,
        0, in, grad, chunks, mutable_data<float>(weight_partial), mutable_data<float>(bias_partial));
  });
  column_sums(op, device,
              {{data<float>(weight_partial), 1, chunks.count, static_cast<int64_t>(size.S) * size.C,
                static_cast<int64_t>(size.S) * size.C, grad_weight.mutable_data_ptr(), grad_weight.scalar_type()},
               {data<float>(bias_partial), 1, chunks.count, size.S, size.S, grad_bias.mutable_data_ptr(),
                grad_bias.scalar_type()}});
}

}  // namespace ifdd::cuda
