// ifdd::lifting_attention and its backward on CUDA; the definition, in plain torch, is in
// ifdd_kernels/reference/lifting_attention.py.
//
// A block of four warps owns 64 rows of one head, 16 a warp, and streams the other side of the score matrix past them
// in tiles: queries own rows in forward and for their gradient, keys for the gradients of key and value. Nothing is
// summed across blocks, so there are no atomics and no second stage. Products run on the tensor cores, of float inputs
// as 3xTF32 (ifdd/cuda/mma.h): no flag of torch's reaches an op through its schema, and the op promises float results.
#include <tuple>

#include "cuda/common/operator.h"
#include "ifdd/cuda/mma.h"
#include "ifdd/cuda/reduce.h"

namespace ifdd::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kWarpRows = 16;
constexpr int kRows = kWarps * kWarpRows;

// Of a difference of scores. Scores keep their unit until then: multiplied by log2(e) first, which would save a
// multiplication, large ones lose more in the rounding than the difference has digits.
IFDD_DEVICE float exponential(float x) { return exp2f(x * 1.4426950408889634f); }

// Rows of a streamed tile. Backward holds twice the accumulators, and floats take twice the shared memory.
template <class T>
constexpr int kForwardTile = is_16_bit<T> ? 64 : 32;
template <class T, int D>
constexpr int kBackwardTile = is_16_bit<T> && D <= 96 ? 32 : 16;

// Strides of (B, M, h, d) in elements; channels are dense.
template <class T>
struct Heads {
  const T* data;
  int64_t batch, token, head;

  IFDD_DEVICE const T* of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

struct Sizes {
  int64_t batch;
  int tokens, heads, channels;
  bool vectors;  // rows of all tensors can be copied 16 bytes at a time
};

template <class T>
struct Forward {
  Sizes size;
  Heads<T> query, key, value;
  float scale;
  int stages;
  T* out;          // (B, M, h * d)
  float* log_sum;  // (B, h, M)
};

template <class T>
struct Backward {
  Sizes size;
  Heads<T> query, key, value, grad;
  const float* log_sum;
  float* delta;  // (B, h, M): rowsum(dP * P)
  float scale;
  int stages;
  T* grad_query;  // (B, M, h, d), like the other two
  T* grad_key;
  T* grad_value;
};

// The head and the rows that a block owns; blocks of one head are neighbours, which share its tiles in the second-level
// cache.
struct Place {
  unsigned batch, head;  // without a sign to extend to 64 bits, which would take two registers of the last few
  int first;             // row of the block
  int lane, warp;

  IFDD_DEVICE explicit Place(const Sizes& size) {
    const unsigned blocks = static_cast<unsigned>((size.tokens + kRows - 1) / kRows);
    const unsigned unit = blockIdx.x / blocks, heads = static_cast<unsigned>(size.heads);
    batch = unit / heads;
    head = unit % heads;
    first = static_cast<int>(blockIdx.x % blocks) * kRows;
    lane = lane_index();
    warp = warp_index();
  }
  // First row of this warp.
  IFDD_DEVICE int row() const { return first + warp * kWarpRows; }
  // Start of the head in (B, h, M).
  IFDD_DEVICE int64_t statistics(const Sizes& size) const {
    return (static_cast<int64_t>(batch) * size.heads + head) * size.tokens;
  }
  // Start of the head in a dense (B, M, h, d) tensor.
  IFDD_DEVICE int64_t dense(const Sizes& size) const {
    return (static_cast<int64_t>(batch) * size.tokens * size.heads + head) * size.channels;
  }
};

// Starts the copy of rows first .. first + Count - 1 of a head to shared memory; zeros behind the last token and
// channel.
template <int Count, int D, int Step, class T>
IFDD_DEVICE void load_rows_by(T* shared, const T* head, int64_t stride, int first, const Sizes& size) {
  constexpr int kPerRow = D / Step;
#pragma unroll 1  // the copies wait for nothing; more of them at once only take registers
  for (int i = threadIdx.x; i < Count * kPerRow; i += kThreads) {
    const int row = i / kPerRow, column = i % kPerRow * Step;
    const bool valid = first + row < size.tokens && column < size.channels;
    T* to = shared + row * kRowStride<T, D> + column;
    const T* from = head + (valid ? (first + row) * stride + column : 0);
    if constexpr (Step > 1) {
      copy_async<16>(to, from, valid);
    } else {
      *to = valid ? *from : narrow<T>(0);
    }
  }
}

template <int Count, int D, class T>
IFDD_DEVICE void load_rows(T* shared, const T* head, int64_t stride, int first, const Sizes& size) {
  if (size.vectors) {
    load_rows_by<Count, D, kVector<T>>(shared, head, stride, first, size);
  } else {
    load_rows_by<Count, D, 1>(shared, head, stride, first, size);
  }
}

// Writes 16 rows of shared memory to rows of a dense (B, M, h, d) tensor.
template <int D, int Step, class T>
IFDD_DEVICE void store_rows_by(T* head, const T* shared, int row, int lane, const Sizes& size) {
  constexpr int kPerRow = D / Step;
  const int64_t stride = static_cast<int64_t>(size.heads) * size.channels;
#pragma unroll 1
  for (int i = lane; i < kWarpRows * kPerRow; i += kWarp) {
    const int r = i / kPerRow, column = i % kPerRow * Step;
    if (row + r < size.tokens && column < size.channels) {
      const Vector<T, Step> elements = load_vector<Step>(shared + r * kRowStride<T, D> + column);
      store_vector<Step>(head + (row + r) * stride + column, elements);
    }
  }
}

// Writes a warp's accumulators there, through 16 rows of shared memory of its own.
template <int D, class T>
IFDD_DEVICE void store_rows(T* head, const float (&d)[D / 8][4], T* shared, int row, int lane, const Sizes& size) {
  __syncwarp();
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = accumulator_row(lane) + i / 2 * 8, c = n * 8 + accumulator_column(lane) + i % 2;
      shared[r * kRowStride<T, D> + c] = narrow<T>(d[n][i]);
    }
  }
  __syncwarp();
  if (size.vectors) {
    store_rows_by<D, kVector<T>>(head, shared, row, lane, size);
  } else {
    store_rows_by<D, 1>(head, shared, row, lane, size);
  }
}

// d += the same rows of a tensor in memory.
template <int D, class T>
IFDD_DEVICE void add_rows(float (&d)[D / 8][4], const T* head, int64_t stride, int row, int lane, const Sizes& size) {
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + accumulator_row(lane) + i / 2 * 8, c = n * 8 + accumulator_column(lane) + i % 2;
      if (r < size.tokens && c < size.channels) d[n][i] += widen(head[r * stride + c]);
    }
  }
}

// Streams the tiles of two tensors through a ring of one or two stages: body(first row, tile of a, tile of b).
// `Passes` times over all rows. The block's other copies, started before, have arrived when the first tile has.
template <int Tile, int D, int Passes, class T, class Body>
IFDD_DEVICE void stream(const T* a, int64_t stride_a, const T* b, int64_t stride_b, T* ring, int stages,
                        const Sizes& size, const Body& body) {
  constexpr int kTileElements = Tile * kRowStride<T, D>;
  const int tiles = (size.tokens + Tile - 1) / Tile, count = tiles * Passes;
  const auto row = [&](int i) { return (Passes == 1 ? i : i % tiles) * Tile; };
  const auto start = [&](int i) {
    if (i < count) {
      T* stage = ring + i % stages * 2 * kTileElements;
      load_rows<Tile, D>(stage, a, stride_a, row(i), size);
      load_rows<Tile, D>(stage + kTileElements, b, stride_b, row(i), size);
    }
    copy_async_commit();  // an empty group too: the wait below counts groups
  };
  start(0);
  for (int i = 0; i < count; ++i) {
    if (stages == 2) {
      start(i + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    const T* stage = ring + i % stages * 2 * kTileElements;
    body(i, row(i), stage, stage + kTileElements);
    __syncthreads();  // the next copy overwrites the stage
    if (stages == 1) start(i + 1);
  }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const __grid_constant__ Forward<T> call) {
  constexpr int kTile = kForwardTile<T>, kStride = kRowStride<T, D>;
  const Sizes& size = call.size;
  const Place at(size);
  T* queries = reinterpret_cast<T*>(dynamic_shared());
  T* own = queries + at.warp * kWarpRows * kStride;
  const T* value = call.value.of(at.batch, at.head);
  load_rows<kRows, D>(queries, call.query.of(at.batch, at.head), call.query.token, at.first, size);

  const bool works = at.row() < size.tokens;  // the others only help to load
  float o[D / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of rows g and g + 8
  stream<kTile, D, 1>(call.key.of(at.batch, at.head), call.key.token, value, call.value.token,
                      queries + kRows * kStride, call.stages, size,
                      [&](int, int first, const T* keys, const T* values) {
                        if (!works) return;
                        float s[kTile / 8][4] = {};
                        multiply_rows<T, D>(s, own, keys, kStride, at.lane);
                        float before[2] = {largest[0], largest[1]};
#pragma unroll
                        for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                          for (int i = 0; i < 4; ++i) {
                            const int column = first + n * 8 + accumulator_column(at.lane) + i % 2;
                            s[n][i] = column < size.tokens ? s[n][i] * call.scale : -INFINITY;
                            largest[i / 2] = Max{}(largest[i / 2], s[n][i]);
                          }
                        }
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                          largest[r] = warp_max<4>(largest[r]);
                          const float factor = exponential(before[r] - largest[r]);
                          sum[r] *= factor;
#pragma unroll
                          for (int n = 0; n < D / 8; ++n) {
                            o[n][2 * r] *= factor;
                            o[n][2 * r + 1] *= factor;
                          }
                        }
#pragma unroll
                        for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                          for (int i = 0; i < 4; ++i) {
                            s[n][i] = exponential(s[n][i] - largest[i / 2]);
                            sum[i / 2] += s[n][i];
                          }
                        }
                        multiply_accumulators<T>(o, s, values, kStride, at.lane);
                      });
  if (!works) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] = warp_sum<4>(sum[r]);
    const float inverse = 1 / sum[r];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      o[n][2 * r] *= inverse;
      o[n][2 * r + 1] *= inverse;
    }
    const int row = at.row() + accumulator_row(at.lane) + 8 * r;
    if (at.lane % 4 == 0 && row < size.tokens) {
      call.log_sum[at.statistics(size) + row] = largest[r] + logf(sum[r]);
    }
  }
  add_rows<D>(o, value, call.value.token, at.row(), at.lane, size);
  store_rows<D>(call.out + at.dense(size), o, own, at.row(), at.lane, size);
}

// Queries own rows. The first pass over the keys sums delta, the second the gradient: delta from (out - value) would
// cost no pass, but a 16-bit out has lost the digits of the softmax's part where the value is large.
template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2) query_kernel(const __grid_constant__ Backward<T> call) {
  constexpr int kTile = kBackwardTile<T, D>, kStride = kRowStride<T, D>;
  const Sizes& size = call.size;
  const Place at(size);
  T* queries = reinterpret_cast<T*>(dynamic_shared());
  T* grads = queries + kRows * kStride;
  T* own_query = queries + at.warp * kWarpRows * kStride;
  T* own_grad = grads + at.warp * kWarpRows * kStride;
  load_rows<kRows, D>(queries, call.query.of(at.batch, at.head), call.query.token, at.first, size);
  load_rows<kRows, D>(grads, call.grad.of(at.batch, at.head), call.grad.token, at.first, size);

  const bool works = at.row() < size.tokens;
  const int tiles = (size.tokens + kTile - 1) / kTile;
  float log_sum[2], delta[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = at.row() + accumulator_row(at.lane) + 8 * r;
    log_sum[r] = row < size.tokens ? call.log_sum[at.statistics(size) + row] : 0;
  }
  float dq[D / 8][4] = {};
  stream<kTile, D, 2>(
      call.key.of(at.batch, at.head), call.key.token, call.value.of(at.batch, at.head), call.value.token,
      grads + kRows * kStride, call.stages, size, [&](int step, int first, const T* keys, const T* values) {
        if (!works) return;
        float s[kTile / 8][4] = {}, dp[kTile / 8][4] = {};
        multiply_rows<T, D>(s, own_query, keys, kStride, at.lane);
        multiply_rows<T, D>(dp, own_grad, values, kStride, at.lane);
        if (step == tiles) {
          delta[0] = warp_sum<4>(delta[0]);
          delta[1] = warp_sum<4>(delta[1]);
        }
#pragma unroll
        for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int column = first + n * 8 + accumulator_column(at.lane) + i % 2;
            const float p = column < size.tokens ? exponential(s[n][i] * call.scale - log_sum[i / 2]) : 0;
            if (step < tiles) {
              delta[i / 2] += p * dp[n][i];
            } else {
              s[n][i] = p * (dp[n][i] - delta[i / 2]) * call.scale;
            }
          }
        }
        if (step >= tiles) multiply_accumulators<T>(dq, s, keys, kStride, at.lane);
      });
  if (!works) return;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = at.row() + accumulator_row(at.lane) + 8 * r;
    if (at.lane % 4 == 0 && row < size.tokens) call.delta[at.statistics(size) + row] = delta[r];
  }
  store_rows<D>(call.grad_query + at.dense(size), dq, own_query, at.row(), at.lane, size);
}

// Keys own rows: every product is that of the transposed score matrix.
template <class T, int D>
__global__ void __launch_bounds__(kThreads, 2) key_value_kernel(const __grid_constant__ Backward<T> call) {
  constexpr int kTile = kBackwardTile<T, D>, kStride = kRowStride<T, D>;
  const Sizes& size = call.size;
  const Place at(size);
  T* keys = reinterpret_cast<T*>(dynamic_shared());
  T* values = keys + kRows * kStride;
  T* own_key = keys + at.warp * kWarpRows * kStride;
  T* own_value = values + at.warp * kWarpRows * kStride;
  const T* grad = call.grad.of(at.batch, at.head);
  load_rows<kRows, D>(keys, call.key.of(at.batch, at.head), call.key.token, at.first, size);
  load_rows<kRows, D>(values, call.value.of(at.batch, at.head), call.value.token, at.first, size);

  const bool works = at.row() < size.tokens;
  float dk[D / 8][4] = {}, dv[D / 8][4] = {};
  stream<kTile, D, 1>(call.query.of(at.batch, at.head), call.query.token, grad, call.grad.token,
                      values + kRows * kStride, call.stages, size,
                      [&](int, int first, const T* queries, const T* grads) {
                        if (!works) return;
                        float p[kTile / 8][4] = {}, ds[kTile / 8][4] = {};
                        multiply_rows<T, D>(p, own_key, queries, kStride, at.lane);
                        multiply_rows<T, D>(ds, own_value, grads, kStride, at.lane);
#pragma unroll
                        for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                          for (int i = 0; i < 4; ++i) {
                            const int column = first + n * 8 + accumulator_column(at.lane) + i % 2;
                            const bool valid = column < size.tokens;
                            const float log_sum = valid ? call.log_sum[at.statistics(size) + column] : 0;
                            const float delta = valid ? call.delta[at.statistics(size) + column] : 0;
                            p[n][i] = valid ? exponential(p[n][i] * call.scale - log_sum) : 0;
                            ds[n][i] = p[n][i] * (ds[n][i] - delta) * call.scale;
                          }
                        }
                        multiply_accumulators<T>(dv, p, grads, kStride, at.lane);
                        multiply_accumulators<T>(dk, ds, queries, kStride, at.lane);
                      });
  if (!works) return;
  store_rows<D>(call.grad_key + at.dense(size), dk, own_key, at.row(), at.lane, size);
  add_rows<D>(dv, grad, call.grad.token, at.row(), at.lane, size);  // when dk has left the registers
  store_rows<D>(call.grad_value + at.dense(size), dv, own_value, at.row(), at.lane, size);
}

// --- host ------------------------------------------------------------------------------------------------------------

Sizes check_inputs(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  check_activation(op, "query", query, query, {-1, -1, -1, -1});
  const int64_t B = query.size(0), M = query.size(1), h = query.size(2), d = query.size(3);
  check_tensor(op, "key", key, query, {B, M, h, d}, {query.scalar_type()});
  check_tensor(op, "value", value, query, {B, M, h, d}, {query.scalar_type()});
  if (d < 1) fail(op, "query", "expected at least one channel, got shape ", shape_text(query.sizes()));
  if (M > INT32_MAX - kRows || h > INT32_MAX) fail(op, "query", "too large: shape ", shape_text(query.sizes()));
  return {B, static_cast<int>(M), static_cast<int>(h), static_cast<int>(d), false};
}

template <class T>
Heads<T> heads_of(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <class T>
bool in_vectors(const Heads<T>& heads, const Sizes& size) {
  return vector_fits<kVector<T>>(heads.data, heads.batch, heads.token, heads.head, int64_t{size.channels});
}

int64_t blocks(const Sizes& size) { return size.batch * size.heads * ((int64_t{size.tokens} + kRows - 1) / kRows); }

// Bytes of shared memory with a number of stages, and the number of stages that fits.
template <class T, int D>
size_t shared_bytes(int row_blocks, int tile, int stages) {
  return sizeof(T) * kRowStride<T, D> * static_cast<size_t>(row_blocks * kRows + stages * 2 * tile);
}

template <class T, int D>
int stages_that_fit(int row_blocks, int tile) {
  const size_t two = shared_bytes<T, D>(row_blocks, tile, 2);
  return two <= static_cast<size_t>(device_limits().shared_bytes_per_block) ? 2 : 1;
}

// Calls f with the kernels' template arguments: the type, and the least of the compiled numbers of channels.
template <class F>
void dispatch(const char* op, ScalarType dtype, const Sizes& size, const F& f) {
  dispatch_dtype(op, dtype, [&](auto type) {
    dispatch_at_least<32, 64, 96, 128>(op, "query", "head_dim", size.channels,
                                       [&](auto channels) { f(type, channels); });
  });
}

std::tuple<Tensor, Tensor> lifting_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                             double scale) {
  const char* op = "lifting_attention";
  const Sizes size = check_inputs(op, query, key, value);
  const CurrentDevice device(query);
  const Tensor q = dense_rows(query), k = dense_rows(key), v = dense_rows(value);
  const Tensor out = stable::new_empty(query, {size.batch, size.tokens, int64_t{size.heads} * size.channels});
  const Tensor log_sum = stable::new_empty(query, {size.batch, size.heads, size.tokens}, ScalarType::Float);
  dispatch(op, query.scalar_type(), size, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    constexpr int D = decltype(channels)::value, kTile = kForwardTile<T>;
    Forward<T> call{size,
                    heads_of<T>(q),
                    heads_of<T>(k),
                    heads_of<T>(v),
                    static_cast<float>(scale),
                    0,
                    mutable_data<T>(out),
                    mutable_data<float>(log_sum)};
    call.stages = stages_that_fit<T, D>(1, kTile);
    call.size.vectors = in_vectors(call.query, size) && in_vectors(call.key, size) && in_vectors(call.value, size);
    run(op, device, &forward_kernel<T, D>, dim3(grid_size(op, blocks(size))), kThreads,
        shared_bytes<T, D>(1, kTile, call.stages), call);
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor> lifting_attention_backward(const Tensor& grad, const Tensor& query,
                                                              const Tensor& key, const Tensor& value, const Tensor& out,
                                                              const Tensor& log_sum, double scale) {
  const char* op = "lifting_attention_backward";
  const Sizes size = check_inputs(op, query, key, value);
  const int64_t B = size.batch, M = size.tokens, h = size.heads, d = size.channels;
  check_tensor(op, "grad_out", grad, query, {B, M, h * d}, {query.scalar_type()});
  check_tensor(op, "out", out, query, {B, M, h * d}, {query.scalar_type()});
  check_tensor(op, "log_sum", log_sum, query, {B, h, M}, {ScalarType::Float});
  const CurrentDevice device(query);
  const Tensor q = dense_rows(query), k = dense_rows(key), v = dense_rows(value), g = dense_rows(grad);
  const Tensor statistics = stable::contiguous(log_sum);
  const Tensor delta = stable::new_empty(query, {B, h, M}, ScalarType::Float);
  const Tensor grad_query = stable::new_empty(query, {B, M, h, d});
  const Tensor grad_key = stable::new_empty(query, {B, M, h, d});
  const Tensor grad_value = stable::new_empty(query, {B, M, h, d});
  dispatch(op, query.scalar_type(), size, [&](auto type, auto channels) {
    using T = typename decltype(type)::type;
    constexpr int D = decltype(channels)::value, kTile = kBackwardTile<T, D>;
    Backward<T> call{size,
                     heads_of<T>(q),
                     heads_of<T>(k),
                     heads_of<T>(v),
                     {data<T>(g), g.stride(0), g.stride(1), d},
                     data<float>(statistics),
                     mutable_data<float>(delta),
                     static_cast<float>(scale),
                     0,
                     mutable_data<T>(grad_query),
                     mutable_data<T>(grad_key),
                     mutable_data<T>(grad_value)};
    call.stages = stages_that_fit<T, D>(2, kTile);
    call.size.vectors = in_vectors(call.query, size) && in_vectors(call.key, size) && in_vectors(call.value, size) &&
                        in_vectors(call.grad, size);
    const dim3 grid(grid_size(op, blocks(size)));
    const size_t bytes = shared_bytes<T, D>(2, kTile, call.stages);
    run(op, device, &query_kernel<T, D>, grid, kThreads, bytes, call);
    run(op, device, &key_value_kernel<T, D>, grid, kThreads, bytes, call);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("lifting_attention", TORCH_BOX(&lifting_attention));
  m.impl("lifting_attention_backward", TORCH_BOX(&lifting_attention_backward));
}

}  // namespace ifdd::cuda
