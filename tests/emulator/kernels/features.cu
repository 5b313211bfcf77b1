// Small kernels that use one feature of the emulator each, for its own tests. They take and give contiguous tensors of
// the sizes the tests know; test_emulator.py breaks them on purpose.
#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/vector.h"

namespace ifdd::cuda {
namespace {

// --- barriers --------------------------------------------------------------------------------------------------------

constexpr int kTile = 32;

struct Tile {
  float cell[kTile][kTile + 1];
};

// (rows, columns) -> (columns, rows), one tile a block, eight rows at a time.
__global__ void __launch_bounds__(256) transpose_kernel(const float* x, float* y, int rows, int columns) {
  Tile& tile = static_shared<Tile>();
  const int column = threadIdx.x % kTile, first = threadIdx.x / kTile;
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  for (int i = first; i < kTile; i += 8) {
    if (row0 + i < rows && column0 + column < columns) {
      tile.cell[i][column] = x[(row0 + i) * columns + column0 + column];
    }
  }
  __syncthreads();
  for (int i = first; i < kTile; i += 8) {
    if (column0 + i < columns && row0 + column < rows) {
      y[(column0 + i) * rows + row0 + column] = tile.cell[column][i];
    }
  }
}

Tensor transpose(const Tensor& x) {
  const CurrentDevice device(x);
  const int rows = static_cast<int>(x.size(0)), columns = static_cast<int>(x.size(1));
  const Tensor y = stable::new_empty(x, {columns, rows});
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  run("transpose", device, &transpose_kernel, grid, 256, 0, data<float>(x), mutable_data<float>(y), rows, columns);
  return y;
}

// Mirrors each group of 32 elements through dynamic shared memory: only the lanes of a warp must wait for each other.
__global__ void __launch_bounds__(128) mirror_kernel(const float* x, float* y) {
  float* cell = reinterpret_cast<float*>(dynamic_shared());
  const int i = threadIdx.x, warp = i / kWarp * kWarp;
  cell[i] = x[blockIdx.x * 128 + i];
  __syncwarp();
  y[blockIdx.x * 128 + i] = cell[warp + kWarp - 1 - i % kWarp];
}

Tensor mirror(const Tensor& x) {
  const CurrentDevice device(x);
  const Tensor y = stable::empty_like(x);
  run("mirror", device, &mirror_kernel, dim3(x.numel() / 128), 128, 128 * sizeof(float), data<float>(x),
      mutable_data<float>(y));
  return y;
}

// Threads that meet at a barrier, or not: 0 all do; 1 half of them at another one; 2 one waits for its warp, which
// waits for it at the block's; 3 half of them have ended, which a barrier allows; 4 counts a predicate.
__global__ void __launch_bounds__(64) meet_kernel(float* y, int mode) {
  const int i = threadIdx.x;
  float value = 1;
  if (mode == 0) __syncthreads();
  if (mode == 1 && i < 32) __syncthreads();
  if (mode == 1 && i >= 32) __syncthreads();
  if (mode == 2 && i != 40) __syncthreads();
  if (mode == 2 && i == 40) __syncwarp();
  if (mode == 3) {
    if (i >= 32) {
      y[i] = 0;
      return;
    }
    __syncthreads();
  }
  if (mode == 4) value = static_cast<float>(__syncthreads_count(i % 3 == 0));
  y[i] = value;
}

Tensor meet(const Tensor& x, int64_t mode) {
  const CurrentDevice device(x);
  const Tensor y = stable::new_empty(x, {64});
  run("meet", device, &meet_kernel, dim3(1), 64, 0, mutable_data<float>(y), static_cast<int>(mode));
  return y;
}

// --- lanes -----------------------------------------------------------------------------------------------------------

// Sums of rows of up to 32 elements, a row a warp: lanes beyond the row end before the exchange, so the mask must name
// the others.
__global__ void __launch_bounds__(32) row_sum_kernel(const float* x, float* y, int columns) {
  const int lane = threadIdx.x;
  if (lane >= columns) return;
  const unsigned mask = columns == kWarp ? kAllLanes : (1u << columns) - 1;
  const float own = x[blockIdx.x * columns + lane];
  float sum = 0;
  for (int i = 0; i < columns; ++i) sum += __shfl_sync(mask, own, i);
  y[blockIdx.x * columns + lane] = sum;
}

Tensor row_sum(const Tensor& x) {
  const CurrentDevice device(x);
  const Tensor y = stable::empty_like(x);
  run("row_sum", device, &row_sum_kernel, dim3(x.size(0)), kWarp, 0, data<float>(x), mutable_data<float>(y),
      static_cast<int>(x.size(1)));
  return y;
}

// Every exchange of 32 numbers: shifted up and down by 3, crossed by 5, in segments of 8, and the votes on x > 0.
__global__ void __launch_bounds__(32) exchange_kernel(const float* x, float* y) {
  const int lane = threadIdx.x;
  const float own = x[lane];
  y[lane] = __shfl_up_sync(kAllLanes, own, 3);
  y[32 + lane] = __shfl_down_sync(kAllLanes, own, 3);
  y[64 + lane] = __shfl_xor_sync(kAllLanes, own, 5);
  y[96 + lane] = __shfl_sync(kAllLanes, own, 2, 8);
  y[128 + lane] = static_cast<float>(__popc(__ballot_sync(kAllLanes, own > 0)));
  y[160 + lane] = static_cast<float>(__any_sync(kAllLanes, own > 100) + 2 * __all_sync(kAllLanes, own < 100));
  y[192 + lane] = warp_sum<8>(own);
  y[224 + lane] = warp_max(own);
}

Tensor exchange(const Tensor& x) {
  const CurrentDevice device(x);
  const Tensor y = stable::new_empty(x, {8, 32});
  run("exchange", device, &exchange_kernel, dim3(1), kWarp, 0, data<float>(x), mutable_data<float>(y));
  return y;
}

// --- asynchronous copies ---------------------------------------------------------------------------------------------

constexpr int kChunk = 128;  // elements of a stage: 16 bytes for each of 32 threads

struct Stages {
  alignas(16) float cell[2][kChunk];
};

// Running sums over chunks of 128, two stages in flight; each thread adds what its neighbour copied.
__global__ void __launch_bounds__(32) pipeline_kernel(const float* x, float* y, int chunks) {
  Stages& stages = static_shared<Stages>();
  const int i = threadIdx.x, other = (i + 1) % 32;
  float sum[4] = {};
  copy_async<16>(&stages.cell[0][4 * i], x + 4 * i, true);
  copy_async_commit();
  for (int c = 0; c < chunks; ++c) {
    const bool more = c + 1 < chunks;
    copy_async<16>(&stages.cell[(c + 1) % 2][4 * i], x + (more ? (c + 1) * kChunk : 0) + 4 * i, more);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();
    float v[4];
    load<4>(&stages.cell[c % 2][4 * other], v);
    for (int j = 0; j < 4; ++j) sum[j] += v[j];
    __syncthreads();  // the next copy overwrites what was read
  }
  store<4>(y + 4 * other, sum);
}

Tensor pipeline(const Tensor& x) {
  const CurrentDevice device(x);
  const Tensor y = stable::new_empty(x, {kChunk});
  run("pipeline", device, &pipeline_kernel, dim3(1), kWarp, 0, data<float>(x), mutable_data<float>(y),
      static_cast<int>(x.numel() / kChunk));
  return y;
}

// --- tensor cores ----------------------------------------------------------------------------------------------------

template <class T>
IFDD_DEVICE uint32_t fragment(const T* first, int64_t step) {
  if constexpr (is_16_bit<T>) {
    return pack_pair<T>(widen(first[0]), widen(first[step]));
  } else {
    return round_tf32(first[0]);
  }
}

// (M, K) (K, N) -> (M, N) in float, one 16 x 8 tile a warp, fragments read from memory by their definition.
template <class T>
__global__ void __launch_bounds__(32) matmul_kernel(const T* a, const T* b, float* c, int K, int N) {
  constexpr int packed = is_16_bit<T> ? 2 : 1, depth = 8 * packed;
  const int group = threadIdx.x / 4, column = threadIdx.x % 4 * packed;
  a += static_cast<int64_t>(blockIdx.y) * 16 * K;
  b += blockIdx.x * 8;
  float d[4] = {};
  for (int k = 0; k < K; k += depth) {
    uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) fa[i] = fragment(a + (group + i % 2 * 8) * K + k + column + i / 2 * depth / 2, 1);
    for (int i = 0; i < 2; ++i) fb[i] = fragment(b + (k + column + i * depth / 2) * N + group, N);
    if constexpr (is_16_bit<T>) {
      mma_m16n8k16(d, fa, fb, T{});
    } else {
      mma_m16n8k8_tf32(d, fa, fb);
    }
  }
  for (int i = 0; i < 4; ++i) {
    c[(blockIdx.y * 16 + group + i / 2 * 8) * N + blockIdx.x * 8 + threadIdx.x % 4 * 2 + i % 2] = d[i];
  }
}

Tensor matmul(const Tensor& a, const Tensor& b) {
  const CurrentDevice device(a);
  const Tensor c = stable::new_empty(a, {a.size(0), b.size(1)}, ScalarType::Float);
  dispatch_dtype("matmul", a.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    run("matmul", device, &matmul_kernel<T>, dim3(b.size(1) / 8, a.size(0) / 16), kWarp, 0, data<T>(a), data<T>(b),
        mutable_data<float>(c), static_cast<int>(a.size(1)), static_cast<int>(b.size(1)));
  });
  return c;
}

struct Matrices {
  alignas(16) uint16_t row[32][8];
};

// Four 8 x 8 matrices of 16-bit numbers through shared memory into fragments, and from there by definition to y.
__global__ void __launch_bounds__(32) matrices_kernel(const uint16_t* x, uint16_t* y, bool transposed) {
  Matrices& shared = static_shared<Matrices>();
  const int lane = threadIdx.x;
  const int mine = kWarp - 1 - lane;  // not the row whose address it gives below
  for (int i = 0; i < 8; ++i) shared.row[mine][i] = x[mine * 8 + i];
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    load_matrices_transposed(r, shared.row[lane]);
  } else {
    load_matrices(r, shared.row[lane]);
  }
  for (int i = 0; i < 4; ++i) {
    y[i * 64 + lane / 4 * 8 + lane % 4 * 2] = static_cast<uint16_t>(r[i]);
    y[i * 64 + lane / 4 * 8 + lane % 4 * 2 + 1] = static_cast<uint16_t>(r[i] >> 16);
  }
}

Tensor matrices(const Tensor& x, bool transposed) {
  const CurrentDevice device(x);
  const Tensor y = stable::empty_like(x);
  run("matrices", device, &matrices_kernel, dim3(1), kWarp, 0, data<uint16_t>(x), mutable_data<uint16_t>(y),
      transposed);
  return y;
}

// --- memory ----------------------------------------------------------------------------------------------------------

struct Last {
  bool block;
};

// Sum of the blocks' sums, by the block that comes last.
__global__ void __launch_bounds__(32) last_block_kernel(const float* x, float* partial, int* arrived, float* y) {
  Last& last = static_shared<Last>();
  const float sum = warp_sum(x[blockIdx.x * kWarp + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last.block = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last.block || threadIdx.x != 0) return;
  __threadfence();
  float total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partial[b];
  y[0] = total;
}

Tensor last_block(const Tensor& x, const Tensor& arrived) {
  const CurrentDevice device(x);
  const int64_t blocks = x.numel() / kWarp;
  const Tensor partial = stable::new_empty(x, {blocks}), y = stable::new_empty(x, {1});
  run("last_block", device, &last_block_kernel, dim3(blocks), kWarp, 0, data<float>(x), mutable_data<float>(partial),
      mutable_data<int>(arrived), mutable_data<float>(y));
  return y;
}

// Memory as a kernel finds it, and accesses it must not make: 0 copies unwritten dynamic shared memory, 1 reads four
// floats at an odd address, 2 reads behind x, 3 writes behind the dynamic shared memory.
__global__ void __launch_bounds__(32) memory_kernel(const float* x, float* y, int count, int mode) {
  float* cell = reinterpret_cast<float*>(dynamic_shared());
  const int i = threadIdx.x;
  if (mode == 1) {
    float v[4];
    load<4>(x + 1, v);
    y[i] = v[0];
  } else if (mode == 2) {
    y[i] = i == 0 ? x[count] : 0;
  } else if (mode == 3) {
    cell[i + 1] = 0;
    y[i] = 0;
  } else {
    y[i] = cell[i];
  }
}

Tensor memory(const Tensor& x, int64_t mode, int64_t shared_bytes) {
  const CurrentDevice device(x);
  const Tensor y = stable::new_empty(x, {kWarp});
  run("memory", device, &memory_kernel, dim3(1), kWarp, static_cast<size_t>(shared_bytes), data<float>(x),
      mutable_data<float>(y), static_cast<int>(x.numel()), static_cast<int>(mode));
  return y;
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("transpose", TORCH_BOX(&transpose));
  m.impl("mirror", TORCH_BOX(&mirror));
  m.impl("meet", TORCH_BOX(&meet));
  m.impl("row_sum", TORCH_BOX(&row_sum));
  m.impl("exchange", TORCH_BOX(&exchange));
  m.impl("pipeline", TORCH_BOX(&pipeline));
  m.impl("matmul", TORCH_BOX(&matmul));
  m.impl("matrices", TORCH_BOX(&matrices));
  m.impl("last_block", TORCH_BOX(&last_block));
  m.impl("memory", TORCH_BOX(&memory));
}

}  // namespace ifdd::cuda
