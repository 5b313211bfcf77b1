// Second stage of the sums over many rows: what the blocks of a kernel left behind, added up in a fixed order.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"

namespace ifdd::cuda {

// out (groups, columns) = sum over r of partial (groups, rows, columns), whose rows are `pitch` floats apart.
struct ColumnSum {
  const float* partial;
  int64_t groups, rows, pitch, columns;
  void* out;
  ScalarType dtype;  // of out
};

constexpr int kMostSums = 9;

struct ColumnSums {
  ColumnSum of[kMostSums];
};

IFDD_DEVICE void store_as(void* out, int64_t place, float value, ScalarType dtype) {
  if (dtype == ScalarType::Half) {
    static_cast<__half*>(out)[place] = narrow<__half>(value);
  } else if (dtype == ScalarType::BFloat16) {
    static_cast<__nv_bfloat16*>(out)[place] = narrow<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(out)[place] = value;
  }
}

constexpr int kSumThreads = 256;

struct SumScratch {
  float of_warp[kSumThreads / kWarp][kWarp];
};

// A block adds up 32 columns of one group: each warp every eighth row, then the first warp the eight sums.
static __global__ void __launch_bounds__(kSumThreads) column_sums_kernel(ColumnSums sums) {
  const ColumnSum& sum = sums.of[blockIdx.y];
  const int64_t tiles = (sum.columns + kWarp - 1) / kWarp;
  if (blockIdx.x >= sum.groups * tiles) return;
  const int64_t group = blockIdx.x / tiles, column = blockIdx.x % tiles * kWarp + lane_index();
  const bool inside = column < sum.columns;
  constexpr int kWarps = kSumThreads / kWarp;
  SumScratch& scratch = static_shared<SumScratch>();
  float value = 0;
  if (inside) {
    const float* from = sum.partial + group * sum.rows * sum.pitch + column;
    for (int64_t r = warp_index(); r < sum.rows; r += kWarps) value += from[r * sum.pitch];
  }
  scratch.of_warp[warp_index()][lane_index()] = value;
  __syncthreads();
  if (warp_index() == 0 && inside) {
    for (int w = 1; w < kWarps; ++w) value += scratch.of_warp[w][lane_index()];
    store_as(sum.out, group * sum.columns + column, value, sum.dtype);
  }
}

// All sums in one launch. Without rows the results are zeros.
inline void column_sums(const char* op, const CurrentDevice& device, std::initializer_list<ColumnSum> given) {
  ColumnSums sums{};
  int64_t blocks = 0;
  std::copy(given.begin(), given.end(), sums.of);
  for (const ColumnSum& sum : given) {
    blocks = std::max(blocks, sum.groups * ((sum.columns + kWarp - 1) / kWarp));
  }
  run(op, device, column_sums_kernel, dim3(grid_size(op, blocks), static_cast<unsigned>(given.size())), kSumThreads, 0,
      sums);
}

}  // namespace ifdd::cuda
