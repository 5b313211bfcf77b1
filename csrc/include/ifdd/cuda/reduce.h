// Sums and maxima over lanes, warps and blocks, in a fixed order: the result is the same in every run and, being formed
// by exchanges, the same bits in every lane.
#pragma once

#include <cstdint>

#include "ifdd/cuda/hardware.h"

namespace ifdd::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Place of this thread in its warp and of its warp in a block; blocks are one-dimensional.
IFDD_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
IFDD_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

struct Sum {
  template <class A>
  IFDD_DEVICE A operator()(A a, A b) const {
    return a + b;
  }
};

// The larger of two numbers; a NaN stays one.
struct Max {
  template <class A>
  IFDD_DEVICE A operator()(A a, A b) const {
    return a > b || a != a ? a : b;
  }
};

// Over groups of Width neighbouring lanes (a power of two). All lanes of the warp call it together.
template <int Width = kWarp, class A, class Op>
IFDD_DEVICE A warp_reduce(A value, const Op& op) {
  static_assert(Width >= 1 && Width <= kWarp && (Width & (Width - 1)) == 0);
#pragma unroll
  for (int distance = Width / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

template <int Width = kWarp, class A>
IFDD_DEVICE A warp_sum(A value) {
  return warp_reduce<Width>(value, Sum{});
}

template <int Width = kWarp, class A>
IFDD_DEVICE A warp_max(A value) {
  return warp_reduce<Width>(value, Max{});
}

// Shared memory of a block reduction of N values.
template <class A, int N = 1>
struct BlockScratch {
  A of_warp[kWarp][N];
};

// Reduces N values over a block whose size is a multiple of the warp's; every thread gets the results. Begins and ends
// with a barrier in effect: the scratch may be used again at once.
template <int N, class A, class Op>
IFDD_DEVICE void block_reduce(A (&value)[N], BlockScratch<A, N>& scratch, const Op& op) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
#pragma unroll
  for (int i = 0; i < N; ++i) value[i] = warp_reduce(value[i], op);
  if (lane_index() == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) scratch.of_warp[warp_index()][i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    value[i] = scratch.of_warp[0][i];
    for (int w = 1; w < warps; ++w) value[i] = op(value[i], scratch.of_warp[w][i]);
  }
  __syncthreads();
}

template <class A>
IFDD_DEVICE A block_sum(A value, BlockScratch<A>& scratch) {
  A values[1] = {value};
  block_reduce(values, scratch, Sum{});
  return values[0];
}

template <class A>
IFDD_DEVICE A block_max(A value, BlockScratch<A>& scratch) {
  A values[1] = {value};
  block_reduce(values, scratch, Max{});
  return values[0];
}

}  // namespace ifdd::cuda
