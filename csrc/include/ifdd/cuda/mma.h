// Products of matrices in shared memory on the tensor cores, one warp at a time, written once for 16-bit elements and
// for float. Floats are multiplied as three TF32 products of their upper and lower halves ("3xTF32"), which keeps 21
// bits of each factor: a float result, not a TF32 one.
//
// D (16 x 8) += A (16 x kDepth) B (kDepth x 8). Rows in shared memory lie kRowStride<T, D> elements apart, which
// spreads the eight rows a load touches over all banks.
#pragma once

#include <cstdint>

#include "ifdd/cuda/scalar.h"
#include "ifdd/cuda/vector.h"

namespace ifdd::cuda {

// Elements between rows of `Columns` (a multiple of 32) in shared memory: 16 bytes of padding.
template <class T, int Columns>
constexpr int kRowStride = Columns + kVector<T>;

// Place of a lane in an accumulator: it holds (row, column), (row, column + 1) and the same of row + 8.
IFDD_DEVICE int accumulator_row(int lane) { return lane / 4; }
IFDD_DEVICE int accumulator_column(int lane) { return lane % 4 * 2; }

template <class T>
struct TensorCore {
  static_assert(is_16_bit<T>);
  static constexpr int kDepth = 16;

  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  // A from the tile whose first element is at `tile`, its rows A's.
  static IFDD_DEVICE A load_a(const T* tile, int stride, int lane) {
    A a;
    load_matrices(a.r, tile + (lane % 16) * stride + lane / 16 * 8);
    return a;
  }

  // Two neighbouring B from a tile whose rows are columns of B.
  static IFDD_DEVICE void load_b_from_rows(B (&b)[2], const T* tile, int stride, int lane) {
    uint32_t r[4];
    load_matrices(r, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
    split(b, r);
  }

  // Two neighbouring B from a tile whose rows are rows of B; for A from accumulators.
  static IFDD_DEVICE void load_b(B (&b)[2], const T* tile, int stride, int lane) {
    uint32_t r[4];
    load_matrices_transposed(r, tile + (lane % 16) * stride + lane / 16 * 8);
    split(b, r);
  }

  // A from kDepth / 8 neighbouring accumulators.
  static IFDD_DEVICE A from_accumulators(const float (*d)[4]) {
    return {{pack_pair<T>(d[0][0], d[0][1]), pack_pair<T>(d[0][2], d[0][3]), pack_pair<T>(d[1][0], d[1][1]),
             pack_pair<T>(d[1][2], d[1][3])}};
  }

  static IFDD_DEVICE void multiply(float (&d)[4], const A& a, const B& b) { mma_m16n8k16(d, a.r, b.r, T{}); }

 private:
  static IFDD_DEVICE void split(B (&b)[2], const uint32_t (&r)[4]) {
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }
};

template <>
struct TensorCore<float> {
  static constexpr int kDepth = 8;

  struct A {
    uint32_t high[4], low[4];
  };
  struct B {
    uint32_t high[2], low[2];
  };

  static IFDD_DEVICE A load_a(const float* tile, int stride, int lane) {
    A a;
    const float* p = tile + lane / 4 * stride + lane % 4;
    split(p[0], a.high[0], a.low[0]);
    split(p[8 * stride], a.high[1], a.low[1]);
    split(p[4], a.high[2], a.low[2]);
    split(p[8 * stride + 4], a.high[3], a.low[3]);
    return a;
  }

  static IFDD_DEVICE void load_b_from_rows(B (&b)[2], const float* tile, int stride, int lane) {
    for (int n = 0; n < 2; ++n) {
      const float* p = tile + (n * 8 + lane / 4) * stride + lane % 4;
      split(p[0], b[n].high[0], b[n].low[0]);
      split(p[4], b[n].high[1], b[n].low[1]);
    }
  }

  // An accumulator holds columns 2t and 2t + 1 where A wants t and t + 4. The order of a sum is free: the rows of B are
  // taken in the accumulator's order instead.
  static IFDD_DEVICE void load_b(B (&b)[2], const float* tile, int stride, int lane) {
    for (int n = 0; n < 2; ++n) {
      const float* p = tile + lane % 4 * 2 * stride + n * 8 + lane / 4;
      split(p[0], b[n].high[0], b[n].low[0]);
      split(p[stride], b[n].high[1], b[n].low[1]);
    }
  }

  static IFDD_DEVICE A from_accumulators(const float (*d)[4]) {
    A a;
    split(d[0][0], a.high[0], a.low[0]);
    split(d[0][2], a.high[1], a.low[1]);
    split(d[0][1], a.high[2], a.low[2]);
    split(d[0][3], a.high[3], a.low[3]);
    return a;
  }

  // The smallest products first.
  static IFDD_DEVICE void multiply(float (&d)[4], const A& a, const B& b) {
    mma_m16n8k8_tf32(d, a.low, b.high);
    mma_m16n8k8_tf32(d, a.high, b.low);
    mma_m16n8k8_tf32(d, a.high, b.high);
  }

 private:
  static IFDD_DEVICE void split(float value, uint32_t& high, uint32_t& low) {
    high = round_tf32(value);
    low = round_tf32(value - bits_float(high));
  }
};

// d[n] += rows of a (16 x Depth, shared memory) times rows of b (8 * N x Depth, shared memory), transposed.
template <class T, int Depth, int N>
IFDD_DEVICE void multiply_rows(float (&d)[N][4], const T* a, const T* b, int stride, int lane) {
  using Core = TensorCore<T>;
#pragma unroll 2  // all of it would keep more fragments in flight than there are registers
  for (int k = 0; k < Depth; k += Core::kDepth) {
    const typename Core::A fa = Core::load_a(a + k, stride, lane);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      typename Core::B fb[2];
      Core::load_b_from_rows(fb, b + n * 8 * stride + k, stride, lane);
      Core::multiply(d[n], fa, fb[0]);
      Core::multiply(d[n + 1], fa, fb[1]);
    }
  }
}

// d[n] += accumulators a (16 x 8 * K) times b (8 * K x 8 * N, shared memory).
//
// Floats are summed in accumulators of their own, which a float addition, rounding, puts into d: tensor cores cut their
// sums off, always toward zero, and over the tiles of a long row that would add up to several roundings of a float. A
// result of 16 bits has lost more than that, and registers are scarce.
template <class T, int K, int N>
IFDD_DEVICE void multiply_accumulators(float (&d)[N][4], const float (&a)[K][4], const T* b, int stride, int lane) {
  using Core = TensorCore<T>;
  constexpr int kStep = Core::kDepth / 8, kSteps = K / kStep;
  typename Core::B fb[2];
  if constexpr (is_16_bit<T>) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const typename Core::A fa = Core::from_accumulators(a + k * kStep);
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        Core::load_b(fb, b + k * Core::kDepth * stride + n * 8, stride, lane);
        Core::multiply(d[n], fa, fb[0]);
        Core::multiply(d[n + 1], fa, fb[1]);
      }
    }
  } else {
    typename Core::A fa[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) fa[k] = Core::from_accumulators(a + k * kStep);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        Core::load_b(fb, b + k * Core::kDepth * stride + n * 8, stride, lane);
        Core::multiply(sum[0], fa[k], fb[0]);
        Core::multiply(sum[1], fa[k], fb[1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        d[n][i] += sum[0][i];
        d[n + 1][i] += sum[1][i];
      }
    }
  }
}

}  // namespace ifdd::cuda
