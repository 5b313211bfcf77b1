// ifdd::pool_tokens and its backward on CUDA. The definition, in plain torch, is in
// ifdd_kernels/reference/pool_tokens.py; bytes, traps and what was rejected are in docs/kernels/pool_tokens.md.
#include <algorithm>
#include <optional>
#include <tuple>

#include "common/pool_tokens.h"
#include "cuda/pooling.h"
#include "cuda/rows.h"
#include "cuda/sums.h"

namespace ifdd::cuda {
namespace {

using OptionalTensor = std::optional<Tensor>;

// --- forward ---------------------------------------------------------------------------------------------------------

template <class T>
struct PoolForward {
  PoolShape shape;
  Part<T> part[kParts];
  const float* norm_bias[kParts];
  T* out[kParts];        // (B, 1 + N', heads, d)
  float* stats[kParts];  // (B, 1 + N', heads, 2)
  float eps;
  int first_block[kParts + 1];
};

template <class T>
struct ForwardPart {
  const PoolForward<T>& op;
  const Part<T>& part;
  int place;

  // LayerNorm of a row in a warp, and its statistics, to output token n.
  IFDD_DEVICE void finish(WarpChannels& row, const Tile& tile, int64_t n) const {
    const int d = op.shape.d;
    const float mean = row.sum(d) / static_cast<float>(d);
    float square = 0;
    row.each(d, [&](int, float& v) { square += (v - mean) * (v - mean); });
    const float rstd = 1 / sqrtf(warp_sum(square) / static_cast<float>(d) + op.eps);
    row.each(d, [&](int c, float& v) { v = (v - mean) * rstd * part.norm_weight[c] + op.norm_bias[place][c]; });
    const int64_t at = (tile.b * (1 + part.cells_out()) + n) * op.shape.heads + tile.head;
    row.write(op.out[place] + at * d, d, d % 2 == 0);
    if (lane_index() == 0) {
      op.stats[place][at * 2] = mean;
      op.stats[place][at * 2 + 1] = rstd;
    }
  }

  template <int Step>
  IFDD_DEVICE void tile_forward(int item) const {
    const PoolShape& shape = op.shape;
    const Tile tile = Tile::template at<Step>(part, shape, item);
    const Place place_in_tile = Place::of(shape);
    const bool works = place_in_tile.group < shape.rows;
    float* results = reinterpret_cast<float*>(dynamic_shared());  // (rows * strip, 2 * pairs)
    T* cells = reinterpret_cast<T*>(results + kMostRows * kStrip<1> * shape.result_pitch());
    const Ring<T, Step> ring(cells, part, shape);

    if (tile.first && warp_index() == 0) {  // the class token: LayerNorm only
      WarpChannels row;
      row.read(part.x + tile.b * part.stride_b + tile.head * shape.d, shape.d, false);
      finish(row, tile, 0);
    }
    float weight[kTaps][2];
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = 2 * place_in_tile.pair + i;
        weight[tap][i] = c < shape.d ? part.weight[c * kTaps + tap] : 0;
      }
    }
    for (int f = 0; f < 3; ++f) ring.stage(tile, f);
    copy_async_commit();
    for (int o = 0; o < part.t.out; ++o) {
      copy_async_wait<0>();
      __syncthreads();
      if (works) {
        float sum[kStrip<Step>][2];
        convolve<T, Step>(ring, place_in_tile, o, [&](int tap, int i) { return weight[tap][i]; }, sum);
#pragma unroll
        for (int j = 0; j < kStrip<Step>; ++j) {
          store_shared(
              results + (place_in_tile.group * kStrip<Step> + j) * shape.result_pitch() + 2 * place_in_tile.pair,
              sum[j]);
        }
      }
      __syncthreads();
      // The frames the next outputs need arrive while the norms are formed.
      if (o + 1 < part.t.out) {
        for (int f = 3 - part.t.step; f < 3; ++f) ring.stage(tile, (o + 1) * part.t.step + f);
        copy_async_commit();
      }
      const int warps = static_cast<int>(blockDim.x) / kWarp;
      for (int i = warp_index(); i < shape.rows * kStrip<Step>; i += warps) {
        const int y = tile.y + i / kStrip<Step>, x = tile.x + i % kStrip<Step>;
        if (y >= part.y.out || x >= part.across.out) continue;
        WarpChannels row;
        row.read(results + i * shape.result_pitch(), shape.d, true);
        finish(row, tile, 1 + (static_cast<int64_t>(o) * part.y.out + y) * part.across.out + x);
      }
    }
  }
};

// A block takes a tile of outputs of one clip, head and part through all frames, which pass through a ring of three in
// shared memory. A thread keeps the 27 weights of two channels and forms a strip of outputs from cells it reads once.
template <class T>
__global__ void __launch_bounds__(kMostThreads, 2) pool_tokens_kernel(const __grid_constant__ PoolForward<T> op) {
  const int block = static_cast<int>(blockIdx.x);
  const int place = block < op.first_block[1] ? 0 : block < op.first_block[2] ? 1 : 2;
  const ForwardPart<T> work{op, op.part[place], place};
  with_step(work.part.across.step,
            [&](auto step) { work.template tile_forward<decltype(step)::value>(block - op.first_block[place]); });
}

// --- backward: norms, weights ----------------------------------------------------------------------------------------

constexpr int kSumRows = kTaps + 2;  // per channel: 27 weights, norm weight, norm bias

template <class T>
struct PoolBackward {
  PoolShape shape;
  Part<T> part[kParts];
  const T* grad[kParts];  // (B, 1 + N', heads, d)
  bool grad_in_pairs[kParts];
  const float* stats[kParts];  // (B, 1 + N', heads, 2)
  float* grad_u[kParts];       // (B, N', heads, d): gradient of the convolution's outputs
  float* partial[kParts];      // (blocks, 29 d)
  T* grad_x[kParts];           // as Part::x, in a contiguous tensor
  int64_t grad_stride_n[kParts];
  int64_t length[kParts];  // items a block takes
  int first_block[kParts + 1];
};

template <class T>
struct BackwardPart {
  const PoolBackward<T>& op;
  const Part<T>& part;
  int place;

  // LayerNorm's backward of a row in a warp: `row`, the norm's input, becomes its gradient.
  IFDD_DEVICE void norm_backward(WarpChannels& row, WarpChannels& weight_sum, WarpChannels& bias_sum,
                                 int64_t at) const {
    const int d = op.shape.d;
    const float mean = op.stats[place][at * 2], rstd = op.stats[place][at * 2 + 1];
    WarpChannels grad;
    grad.read(op.grad[place] + at * d, d, op.grad_in_pairs[place]);
    float mean_grad = 0, mean_product = 0;
#pragma unroll
    for (int turn = 0; turn < WarpChannels::kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = (turn * kWarp + lane_index()) * 2 + i;
        if (c >= d) continue;
        float& g = grad.value[turn][i];
        float& n = row.value[turn][i];
        n = (n - mean) * rstd;
        weight_sum.value[turn][i] += g * n;
        bias_sum.value[turn][i] += g;
        g *= part.norm_weight[c];
        mean_grad += g;
        mean_product += g * n;
      }
    }
    mean_grad = warp_sum(mean_grad) / static_cast<float>(d);
    mean_product = warp_sum(mean_product) / static_cast<float>(d);
#pragma unroll
    for (int turn = 0; turn < WarpChannels::kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& n = row.value[turn][i];
        n = rstd * (grad.value[turn][i] - mean_grad - n * mean_product);
      }
    }
  }

  template <int Step>
  IFDD_DEVICE void tiles_backward(int block) const {
    const PoolShape& shape = op.shape;
    const Place here = Place::of(shape);
    const bool works = here.group < shape.rows;
    const int pitch = shape.result_pitch(), warps = static_cast<int>(blockDim.x) / kWarp;
    float* results = reinterpret_cast<float*>(dynamic_shared());  // (rows * strip, 2 * pairs)
    float* weights = results + kMostRows * kStrip<1> * pitch;     // (29, 2 * pairs): the weights, at last the sums
    T* cells = reinterpret_cast<T*>(weights + kSumRows * pitch);
    const Ring<T, Step> ring(cells, part, shape);
    const bool even = shape.d % 2 == 0;

    for (int i = static_cast<int>(threadIdx.x); i < kTaps * pitch; i += static_cast<int>(blockDim.x)) {
      weights[i] = i % pitch < shape.d ? part.weight[i % pitch * kTaps + i / pitch] : 0;
    }
    float taps[kTaps][2] = {};
    WarpChannels weight_sum{}, bias_sum{};
    const int64_t length = op.length[place], after = (block + 1) * length;
    const int end = after < part.items ? static_cast<int>(after) : part.items;
    for (int item = static_cast<int>(block * length); item < end; ++item) {
      const Tile tile = Tile::template at<Step>(part, shape, item);
      const int64_t first_row = tile.b * (1 + part.cells_out());
      if (tile.first && warp_index() == 0) {  // the class token
        WarpChannels row;
        row.read(part.x + tile.b * part.stride_b + tile.head * shape.d, shape.d, false);
        norm_backward(row, weight_sum, bias_sum, first_row * shape.heads + tile.head);
        row.write(op.grad_x[place] + tile.b * (1 + part.cells_in()) * op.grad_stride_n[place] + tile.head * shape.d,
                  shape.d, even);
      }
      for (int f = 0; f < 3; ++f) ring.stage(tile, f);
      for (int o = 0; o < part.t.out; ++o) {
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        if (works) {
          float sum[kStrip<Step>][2];
          convolve<T, Step>(
              ring, here, o, [&](int tap, int i) { return weights[tap * pitch + 2 * here.pair + i]; }, sum);
#pragma unroll
          for (int j = 0; j < kStrip<Step>; ++j) {
            store_shared(results + (here.group * kStrip<Step> + j) * pitch + 2 * here.pair, sum[j]);
          }
        }
        __syncthreads();
        for (int i = warp_index(); i < shape.rows * kStrip<Step>; i += warps) {
          const int y = tile.y + i / kStrip<Step>, x = tile.x + i % kStrip<Step>;
          WarpChannels row{};
          if (y < part.y.out && x < part.across.out) {
            const int64_t cell = (static_cast<int64_t>(o) * part.y.out + y) * part.across.out + x;
            row.read(results + i * pitch, shape.d, true);
            norm_backward(row, weight_sum, bias_sum, (first_row + 1 + cell) * shape.heads + tile.head);
            const int64_t at = (tile.b * part.cells_out() + cell) * shape.heads + tile.head;
            row.write(op.grad_u[place] + at * shape.d, shape.d, even);
          }
          row.write_shared(results + i * pitch, shape.d);  // zeros outside the grid
        }
        __syncthreads();
        if (works) {
          float grad[kStrip<Step>][2];
#pragma unroll
          for (int j = 0; j < kStrip<Step>; ++j) {
            load(results + (here.group * kStrip<Step> + j) * pitch + 2 * here.pair, grad[j]);
          }
          ring.each_cell(here, o, [&](int tap_row, int column, const float (&value)[2]) {
#pragma unroll
            for (int j = 0; j < kStrip<Step>; ++j) {
              const int tap = column - j * Step;
              if (tap < 0 || tap > 2) continue;
#pragma unroll
              for (int i = 0; i < 2; ++i) taps[tap_row * 3 + tap][i] += grad[j][i] * value[i];
            }
          });
        }
        __syncthreads();
        if (o + 1 < part.t.out) {
          for (int f = 3 - part.t.step; f < 3; ++f) ring.stage(tile, (o + 1) * part.t.step + f);
        }
      }
    }

    // The threads' and warps' sums, one after the other in a fixed order.
    float* sums = weights;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kSumRows * pitch; i += static_cast<int>(blockDim.x)) sums[i] = 0;
    const int turns = warps > shape.rows ? warps : shape.rows;
    for (int turn = 0; turn < turns; ++turn) {
      __syncthreads();
      if (here.group == turn && works) {
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
          for (int i = 0; i < 2; ++i) sums[tap * pitch + 2 * here.pair + i] += taps[tap][i];
        }
      }
      if (warp_index() == turn) {
        weight_sum.each(shape.d, [&](int c, float& v) { sums[kTaps * pitch + c] += v; });
        bias_sum.each(shape.d, [&](int c, float& v) { sums[(kTaps + 1) * pitch + c] += v; });
      }
    }
    __syncthreads();
    float* partial = op.partial[place] + static_cast<int64_t>(block) * kSumRows * shape.d;
    for (int i = static_cast<int>(threadIdx.x); i < kSumRows * shape.d; i += static_cast<int>(blockDim.x)) {
      const bool tap = i < kTaps * shape.d;  // weights as (d, 27), then the two rows of the norm
      partial[i] = tap ? sums[i % kTaps * pitch + i / kTaps] : sums[i / shape.d * pitch + i % shape.d];
    }
  }
};

// A block takes a range of tiles, each through all frames: the convolution again, the norm's backward, and from both
// the sums for the weights.
template <class T>
__global__ void __launch_bounds__(kMostThreads, is_16_bit<T> ? 2 : 1)
    pool_tokens_norm_kernel(const __grid_constant__ PoolBackward<T> op) {
  const int block = static_cast<int>(blockIdx.x);
  const int place = block < op.first_block[1] ? 0 : block < op.first_block[2] ? 1 : 2;
  const BackwardPart<T> work{op, op.part[place], place};
  with_step(work.part.across.step,
            [&](auto step) { work.template tiles_backward<decltype(step)::value>(block - op.first_block[place]); });
}

// --- backward: tokens ------------------------------------------------------------------------------------------------

constexpr int kInputTurns = 16;  // units of work a group of threads takes: they share one read of the weights
constexpr int kInputStrip = 8;   // input columns of a unit with steps of 1 and 2

template <class T>
struct PoolInput {
  PoolShape shape;
  Part<T> part[kParts];
  const float* grad_u[kParts];
  T* grad_x[kParts];
  int64_t grad_stride_n[kParts];
  int units[kParts];  // B * heads * T * H * units of a row
  int units_across[kParts];
  int first_block[kParts + 1];
};

// Outputs of an axis that read input cell i: first .. last; output o does through tap i + 1 - o * stride.
struct Readers {
  int first, last;

  static IFDD_DEVICE Readers of(const Axis& axis, int i) {
    const int last = (i + 1) / axis.stride;
    return {i == 0 ? 0 : (i - 1 + axis.stride - 1) / axis.stride, last < axis.out ? last : axis.out - 1};
  }
};

template <class T>
struct InputPart {
  const PoolInput<T>& op;
  const Part<T>& part;
  int place;

  IFDD_DEVICE void write(T* cell, const float (&value)[2], int pair) const {
    const int c = 2 * pair;
    if (op.shape.d % 2 == 0) {
      store(cell + c, value);
    } else {
      cell[c] = narrow<T>(value[0]);
      if (c + 1 < op.shape.d) cell[c + 1] = narrow<T>(value[1]);
    }
  }

  // Pair of channels of the gradient of output column x, zeros outside the grid.
  IFDD_DEVICE void read(const float* row, int x, int pair, float (&value)[2]) const {
    value[0] = value[1] = 0;
    if (x < 0 || x >= part.across.out) return;
    const float* cell = row + static_cast<int64_t>(x) * op.shape.heads * op.shape.d + 2 * pair;
    if (op.shape.d % 2 == 0) {
      load(cell, value);
    } else {
      value[0] = cell[0];
      if (2 * pair + 1 < op.shape.d) value[1] = cell[1];
    }
  }

  // Calls body(gradient row, weights of the tap row) for the output rows that read input row (t, y).
  template <class Body>
  IFDD_DEVICE void each_row(const float* weights, int64_t b, int head, int t, int y, const Body& body) const {
    const Readers frames = Readers::of(part.t, t), rows = Readers::of(part.y, y);
    for (int ot = frames.first; ot <= frames.last; ++ot) {
      for (int oy = rows.first; oy <= rows.last; ++oy) {
        const int64_t row = ((b * part.t.out + ot) * part.y.out + oy) * part.across.out;
        const int tap_row = (t + 1 - ot * part.t.stride) * 3 + (y + 1 - oy * part.y.stride);
        body(op.grad_u[place] + (row * op.shape.heads + head) * op.shape.d,
             weights + tap_row * 3 * op.shape.result_pitch());
      }
    }
  }

  template <int Step>
  IFDD_DEVICE void unit_backward(const float* weights, const Place& here, int unit) const {
    const PoolShape& shape = op.shape;
    const int across = unit % op.units_across[place], of_row = unit / op.units_across[place];
    const int y = of_row % part.y.in, of_frame = of_row / part.y.in;
    const int t = of_frame % part.t.in, of_head = of_frame / part.t.in;
    const int head = of_head % shape.heads;
    const int64_t b = of_head / shape.heads;
    const int64_t token = b * (1 + part.cells_in()) + 1 + (static_cast<int64_t>(t) * part.y.in + y) * part.across.in;
    T* row = op.grad_x[place] + token * op.grad_stride_n[place] + head * shape.d;
    const int64_t stride = op.grad_stride_n[place];
    const auto tap_weight = [&](const float* tap_row, int tap, int i) {
      return tap_row[tap * shape.result_pitch() + 2 * here.pair + i];
    };

    if constexpr (Step < 3) {
      // Columns x0 .. x0 + 7, x0 a multiple of the step: column x0 + j is read by output x0 / Step + i through tap
      // j + 1 - i * Step.
      float sum[kInputStrip][2] = {};
      const int x0 = across * kInputStrip;
      each_row(weights, b, head, t, y, [&](const float* grad_row, const float* tap_row) {
        float weight[3][2];
#pragma unroll
        for (int tap = 0; tap < 3; ++tap) {
          weight[tap][0] = tap_weight(tap_row, tap, 0);
          weight[tap][1] = tap_weight(tap_row, tap, 1);
        }
#pragma unroll
        for (int i = Step == 1 ? -1 : 0; i <= kInputStrip / Step; ++i) {
          float grad[2];
          read(grad_row, x0 / Step + i, here.pair, grad);
#pragma unroll
          for (int tap = 0; tap < 3; ++tap) {
            const int j = i * Step - 1 + tap;
            if (j < 0 || j >= kInputStrip) continue;
            sum[j][0] += weight[tap][0] * grad[0];
            sum[j][1] += weight[tap][1] * grad[1];
          }
        }
      });
#pragma unroll
      for (int j = 0; j < kInputStrip; ++j) {
        if (x0 + j < part.across.in) write(row + (x0 + j) * stride, sum[j], here.pair);
      }
    } else {
      // The window of output `across`, and the columns behind it that no window covers.
      float sum[3][2] = {};
      each_row(weights, b, head, t, y, [&](const float* grad_row, const float* tap_row) {
        float grad[2];
        read(grad_row, across, here.pair, grad);
#pragma unroll
        for (int tap = 0; tap < 3; ++tap) {
          sum[tap][0] += tap_weight(tap_row, tap, 0) * grad[0];
          sum[tap][1] += tap_weight(tap_row, tap, 1) * grad[1];
        }
      });
      const int first = across * part.across.stride - 1;
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const int x = first + tap;
        if (x >= 0 && x < part.across.in) write(row + x * stride, sum[tap], here.pair);
      }
      const float zeros[2] = {0, 0};
      const int next = across + 1 < part.across.out ? first + part.across.stride : part.across.in;
      for (int x = first + 3; x < next; ++x) write(row + x * stride, zeros, here.pair);
    }
  }
};

// The gradient of the tokens, gathered: a group of threads takes a few input columns of a row at a time. Two divisions
// a row find its readers; along the columns the step is known at compile time.
template <class T>
__global__ void __launch_bounds__(kMostThreads) pool_tokens_input_kernel(const __grid_constant__ PoolInput<T> op) {
  const int block = static_cast<int>(blockIdx.x);
  const int place = block < op.first_block[1] ? 0 : block < op.first_block[2] ? 1 : 2;
  const InputPart<T> work{op, op.part[place], place};
  const PoolShape& shape = op.shape;
  const Place here = Place::of(shape);
  const int pitch = shape.result_pitch();
  float* weights = reinterpret_cast<float*>(dynamic_shared());  // (27, 2 * pairs)
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * pitch; i += static_cast<int>(blockDim.x)) {
    weights[i] = i % pitch < shape.d ? work.part.weight[i % pitch * kTaps + i / pitch] : 0;
  }
  __syncthreads();
  if (here.group >= shape.rows) return;
  const int64_t first = (static_cast<int64_t>(block) - op.first_block[place]) * kInputTurns * shape.rows;
  with_step(work.part.across.step, [&](auto step) {
    for (int turn = 0; turn < kInputTurns; ++turn) {
      const int64_t unit = first + static_cast<int64_t>(turn) * shape.rows + here.group;
      if (unit < op.units[place]) work.template unit_backward<decltype(step)::value>(weights, here, unit);
    }
  });
}

// --- host ------------------------------------------------------------------------------------------------------------

struct Inputs {
  int64_t B, heads, d;
  Axis axis[kParts][3];  // time, height, width
  ScalarType dtype;
};

Inputs check_inputs(const char* op, const Tensor& qkv, const OptionalTensor& key_value, const Triple& grid,
                    const Triple& key_value_grid, int64_t heads, const Triple& stride_q, const Triple& stride_kv) {
  const auto check_rows = [&](const char* argument, const Tensor& tensor) {
    check_activation(op, argument, tensor, qkv, {-1, -1, -1});
  };
  Inputs in{};
  in.d = check_tokens(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv, check_rows);
  in.B = qkv.size(0);
  in.heads = heads;
  in.dtype = qkv.scalar_type();
  if (in.d > kMostChannels) {
    fail(op, "qkv", "expected head_dim <= ", kMostChannels, " (a warp holds a row in registers), got ", in.d);
  }
  constexpr int64_t kLongest = 1 << 24;  // nine times an axis is counted in 32 bits
  for (int part = 0; part < kParts; ++part) {
    for (int i = 0; i < 3; ++i) {
      const int64_t size = (part == 0 ? grid : key_value_grid)[i];
      if (size > kLongest)
        fail(op, part == 0 ? "grid" : "key_value_grid", "expected sizes <= ", kLongest, ", got ", size);
      // A longer stride than the axis selects the same single cell.
      const int64_t stride = std::min((part == 0 ? stride_q : stride_kv)[i], size);
      in.axis[part][i] = {static_cast<int>(size), static_cast<int>((size - 1) / stride + 1), static_cast<int>(stride),
                          static_cast<int>(std::min<int64_t>(stride, 3))};
    }
  }
  return in;
}

using Named = std::pair<const char*, const Tensor*>;

void check_parameters(const char* op, const Inputs& in, const Tensor& qkv, std::initializer_list<Named> weights,
                      std::initializer_list<Named> norms) {
  for (const auto& [name, tensor] : weights) check_parameter(op, name, *tensor, qkv, {in.d, 1, 3, 3, 3}, in.dtype);
  for (const auto& [name, tensor] : norms) check_parameter(op, name, *tensor, qkv, {in.d}, in.dtype);
}

// The tensors that q, k and v lie in: one, or one for q and one for both k and v. Outlives the launches.
struct Packed {
  Tensor query;
  OptionalTensor key_value;

  const Tensor& tensor(int part) const { return part > 0 && key_value ? *key_value : query; }
  // Where the part begins in a token.
  int64_t offset(const Inputs& in, int part) const {
    return (part > 0 && key_value ? part - 1 : part) * in.heads * in.d;
  }
};

Packed packed_rows(const Tensor& qkv, const OptionalTensor& key_value) {
  return {dense_rows(qkv), key_value ? OptionalTensor(dense_rows(*key_value)) : std::nullopt};
}

template <class T>
Part<T> part_of(const Inputs& in, const Packed& packed, int place) {
  const Tensor& tensor = packed.tensor(place);
  Part<T> part{};
  part.x = data<T>(tensor) + packed.offset(in, place);
  part.stride_b = tensor.stride(0);
  part.stride_n = tensor.stride(1);
  part.t = in.axis[place][0];
  part.y = in.axis[place][1];
  part.across = in.axis[place][2];
  part.wide = vector_fits<kVector<T>>(part.x, part.stride_b, part.stride_n, in.d);
  return part;
}

size_t result_bytes(const PoolShape& shape, int more_rows) {
  return static_cast<size_t>(kMostRows * kStrip<1> + more_rows) * shape.result_pitch() * sizeof(float);
}

// Rows of a tile as many as shared memory allows, and with them the tiles of each part. Returns the bytes.
template <class T>
size_t arrange(const char* op, const Inputs& in, Part<T> (&part)[kParts], PoolShape& shape, int more_rows) {
  const auto limit = static_cast<size_t>(device_limits().shared_bytes_per_block);
  shape.heads = static_cast<int>(in.heads);
  shape.d = static_cast<int>(in.d);
  shape.pairs = static_cast<int>((in.d + 1) / 2);
  size_t bytes = 0;
  for (shape.rows = kMostRows; shape.rows >= 1; shape.rows /= 2) {
    int64_t ring = 0;
    for (const Part<T>& p : part) ring = std::max(ring, ring_size(p, shape));
    bytes = result_bytes(shape, more_rows) + ring * sizeof(T);
    if (bytes <= limit && shape.pairs * shape.rows <= kMostThreads) break;
  }
  if (shape.rows == 0) {
    fail(op, "qkv", "expected a smaller head_dim: three frames of a tile of ", in.d, " channels take ", bytes,
         " bytes of shared memory, a block of this GPU has ", limit);
  }
  for (Part<T>& p : part) {
    const int strip = p.across.step == 1 ? kStrip<1> : p.across.step == 2 ? kStrip<2> : kStrip<3>;
    p.tiles_y = (p.y.out + shape.rows - 1) / shape.rows;
    p.tiles_x = (p.across.out + strip - 1) / strip;
    p.items = static_cast<int>(grid_size(op, in.B * in.heads * p.tiles_y * p.tiles_x));
  }
  return bytes;
}

int threads_of(const PoolShape& shape) { return (shape.pairs * shape.rows + kWarp - 1) / kWarp * kWarp; }

// first[p] .. first[p + 1] - 1 are the blocks of part p.
template <class Count>
void number_blocks(const char* op, int (&first)[kParts + 1], const Count& count) {
  int64_t blocks = 0;
  for (int part = 0; part < kParts; ++part) {
    first[part] = static_cast<int>(grid_size(op, blocks));
    blocks += count(part);
  }
  first[kParts] = static_cast<int>(grid_size(op, blocks));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pool_tokens(
    const Tensor& qkv, const OptionalTensor& key_value, const Tensor& weight_q, const Tensor& weight_k,
    const Tensor& weight_v, const Tensor& norm_weight_q, const Tensor& norm_bias_q, const Tensor& norm_weight_k,
    const Tensor& norm_bias_k, const Tensor& norm_weight_v, const Tensor& norm_bias_v, const Triple& grid,
    const Triple& key_value_grid, int64_t heads, const Triple& stride_q, const Triple& stride_kv, double eps) {
  const char* op = "pool_tokens";
  const Inputs in = check_inputs(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv);
  check_parameters(op, in, qkv, {{"weight_q", &weight_q}, {"weight_k", &weight_k}, {"weight_v", &weight_v}},
                   {{"norm_weight_q", &norm_weight_q},
                    {"norm_bias_q", &norm_bias_q},
                    {"norm_weight_k", &norm_weight_k},
                    {"norm_bias_k", &norm_bias_k},
                    {"norm_weight_v", &norm_weight_v},
                    {"norm_bias_v", &norm_bias_v}});
  if (!(eps > 0)) fail(op, "eps", "expected a positive number, got ", eps);
  const CurrentDevice device(qkv);
  const Packed packed = packed_rows(qkv, key_value);
  const Tensor weights[kParts] = {as_float(weight_q), as_float(weight_k), as_float(weight_v)};
  const Tensor norm_weights[kParts] = {as_float(norm_weight_q), as_float(norm_weight_k), as_float(norm_weight_v)};
  const Tensor norm_biases[kParts] = {as_float(norm_bias_q), as_float(norm_bias_k), as_float(norm_bias_v)};
  Tensor pooled[kParts], stats[kParts];
  dispatch_dtype(op, in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    PoolForward<T> call{};
    call.eps = static_cast<float>(eps);
    for (int part = 0; part < kParts; ++part) {
      Part<T>& p = call.part[part] = part_of<T>(in, packed, part);
      p.weight = data<float>(weights[part]);
      p.norm_weight = data<float>(norm_weights[part]);
      call.norm_bias[part] = data<float>(norm_biases[part]);
      pooled[part] = stable::new_empty(qkv, {in.B, 1 + p.cells_out(), in.heads, in.d});
      stats[part] = stable::new_empty(qkv, {in.B, 1 + p.cells_out(), in.heads, 2}, ScalarType::Float);
      call.out[part] = mutable_data<T>(pooled[part]);
      call.stats[part] = mutable_data<float>(stats[part]);
    }
    const size_t bytes = arrange(op, in, call.part, call.shape, 0);
    number_blocks(op, call.first_block, [&](int part) { return call.part[part].items; });
    run(op, device, pool_tokens_kernel<T>, dim3(static_cast<unsigned>(call.first_block[kParts])),
        threads_of(call.shape), bytes, call);
  });
  return {pooled[0], pooled[1], pooled[2], stats[0], stats[1], stats[2]};
}

// Blocks of a part that sum gradients of its weights: their partial sums stay a fraction of the tokens' bytes.
constexpr int64_t kNormBlocks = 512;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pool_tokens_backward(
    const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v, const Tensor& qkv,
    const OptionalTensor& key_value, const Tensor& weight_q, const Tensor& weight_k, const Tensor& weight_v,
    const Tensor& norm_weight_q, const Tensor& norm_weight_k, const Tensor& norm_weight_v, const Tensor& stats_q,
    const Tensor& stats_k, const Tensor& stats_v, const Triple& grid, const Triple& key_value_grid, int64_t heads,
    const Triple& stride_q, const Triple& stride_kv) {
  const char* op = "pool_tokens_backward";
  const Inputs in = check_inputs(op, qkv, key_value, grid, key_value_grid, heads, stride_q, stride_kv);
  check_parameters(
      op, in, qkv, {{"weight_q", &weight_q}, {"weight_k", &weight_k}, {"weight_v", &weight_v}},
      {{"norm_weight_q", &norm_weight_q}, {"norm_weight_k", &norm_weight_k}, {"norm_weight_v", &norm_weight_v}});
  const Named grads_given[kParts] = {{"grad_query", &grad_q}, {"grad_key", &grad_k}, {"grad_value", &grad_v}};
  const Named stats_given[kParts] = {{"stats_q", &stats_q}, {"stats_k", &stats_k}, {"stats_v", &stats_v}};
  const CurrentDevice device(qkv);
  const Packed packed = packed_rows(qkv, key_value);
  const Tensor* const weights_given[kParts] = {&weight_q, &weight_k, &weight_v};
  const Tensor* const norms_given[kParts] = {&norm_weight_q, &norm_weight_k, &norm_weight_v};
  const Packed grad_packed{
      stable::new_empty(qkv, qkv.sizes()),
      key_value ? OptionalTensor(stable::new_empty(*key_value, key_value->sizes())) : std::nullopt};
  Tensor weights[kParts], norm_weights[kParts], grads[kParts], stats[kParts], grad_u[kParts], partial[kParts];
  Tensor grad_weight[kParts], grad_norm_weight[kParts], grad_norm_bias[kParts];
  for (int part = 0; part < kParts; ++part) {
    const Axis* axis = in.axis[part];
    const int64_t cells = static_cast<int64_t>(axis[0].out) * axis[1].out * axis[2].out;
    check_tensor(op, grads_given[part].first, *grads_given[part].second, qkv, {in.B, 1 + cells, in.heads, in.d},
                 {in.dtype});
    check_tensor(op, stats_given[part].first, *stats_given[part].second, qkv, {in.B, 1 + cells, in.heads, 2},
                 {ScalarType::Float});
    weights[part] = as_float(*weights_given[part]);
    norm_weights[part] = as_float(*norms_given[part]);
    grads[part] = stable::contiguous(*grads_given[part].second);
    stats[part] = stable::contiguous(*stats_given[part].second);
    grad_u[part] = stable::new_empty(qkv, {in.B, cells, in.heads, in.d}, ScalarType::Float);
    grad_weight[part] = stable::new_empty(*weights_given[part], {in.d, 1, 3, 3, 3});
    grad_norm_weight[part] = stable::new_empty(*norms_given[part], {in.d});
    grad_norm_bias[part] = stable::new_empty(*norms_given[part], {in.d});
  }

  int64_t blocks[kParts];
  dispatch_dtype(op, in.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    PoolBackward<T> call{};
    PoolInput<T> input{};
    for (int part = 0; part < kParts; ++part) {
      Part<T>& p = call.part[part] = part_of<T>(in, packed, part);
      p.weight = data<float>(weights[part]);
      p.norm_weight = data<float>(norm_weights[part]);
      call.grad[part] = data<T>(grads[part]);
      call.grad_in_pairs[part] = vector_fits<2>(call.grad[part], in.d);  // a view may begin anywhere
      call.stats[part] = data<float>(stats[part]);
      call.grad_u[part] = mutable_data<float>(grad_u[part]);
      call.grad_x[part] = mutable_data<T>(grad_packed.tensor(part)) + grad_packed.offset(in, part);
      call.grad_stride_n[part] = grad_packed.tensor(part).size(2);
    }
    const size_t bytes = arrange(op, in, call.part, call.shape, kSumRows);
    for (int part = 0; part < kParts; ++part) {
      const Chunks chunks = chunks_of(call.part[part].items, kNormBlocks);
      blocks[part] = chunks.count;
      call.length[part] = chunks.length;
      partial[part] = stable::new_empty(qkv, {chunks.count, kSumRows, in.d}, ScalarType::Float);
      call.partial[part] = mutable_data<float>(partial[part]);

      const Part<T>& p = call.part[part];
      input.part[part] = p;
      input.grad_u[part] = call.grad_u[part];
      input.grad_x[part] = call.grad_x[part];
      input.grad_stride_n[part] = call.grad_stride_n[part];
      input.units_across[part] = p.across.step < 3 ? (p.across.in + kInputStrip - 1) / kInputStrip : p.across.out;
      input.units[part] = static_cast<int>(grid_size(op, in.B * in.heads * p.t.in * p.y.in * input.units_across[part]));
    }
    input.shape = call.shape;
    number_blocks(op, call.first_block, [&](int part) { return blocks[part]; });
    run(op, device, pool_tokens_norm_kernel<T>, dim3(static_cast<unsigned>(call.first_block[kParts])),
        threads_of(call.shape), bytes, call);
    const int64_t per_block = static_cast<int64_t>(kInputTurns) * input.shape.rows;
    number_blocks(op, input.first_block, [&](int part) { return (input.units[part] + per_block - 1) / per_block; });
    run(op, device, pool_tokens_input_kernel<T>, dim3(static_cast<unsigned>(input.first_block[kParts])),
        threads_of(input.shape), kTaps * input.shape.result_pitch() * sizeof(float), input);
  });
  const auto sum = [&](int part, int64_t row, int64_t rows, const Tensor& out) {
    return ColumnSum{data<float>(partial[part]) + row * in.d,
                     1,
                     blocks[part],
                     kSumRows * in.d,
                     rows * in.d,
                     out.mutable_data_ptr(),
                     out.scalar_type()};
  };
  column_sums(
      op, device,
      {sum(0, 0, kTaps, grad_weight[0]), sum(0, kTaps, 1, grad_norm_weight[0]), sum(0, kTaps + 1, 1, grad_norm_bias[0]),
       sum(1, 0, kTaps, grad_weight[1]), sum(1, kTaps, 1, grad_norm_weight[1]), sum(1, kTaps + 1, 1, grad_norm_bias[1]),
       sum(2, 0, kTaps, grad_weight[2]), sum(2, kTaps, 1, grad_norm_weight[2]),
       sum(2, kTaps + 1, 1, grad_norm_bias[2])});
  return {grad_packed.query, key_value ? *grad_packed.key_value : stable::new_empty(qkv, {0}),
          grad_weight[0],    grad_weight[1],
          grad_weight[2],    grad_norm_weight[0],
          grad_norm_bias[0], grad_norm_weight[1],
          grad_norm_bias[1], grad_norm_weight[2],
          grad_norm_bias[2]};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("pool_tokens", TORCH_BOX(&pool_tokens));
  m.impl("pool_tokens_backward", TORCH_BOX(&pool_tokens_backward));
}

}  // namespace ifdd::cuda
