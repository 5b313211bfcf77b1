// Products of matrices that fit the cache, in the accumulation type, for kernel files only: register tiles, no packing
// but of the right factor's columns where its rows are given. Sums run in order along the depth, lane by lane: their
// bits do not depend on the width of vectors.
//
// Storage is padded (ifdd/padding.h): results are written in whole tiles, up to m rounded up to kTileRows and n to
// vectors, and what lies there is read; it must be readable, and is garbage afterwards.
#pragma once

#include "ifdd/vector/vector.h"

namespace ifdd::cpu::IFDD_ISA {

// A register tile is kTileRows x kTileVectors vectors: 24 of the 32 registers of AVX-512, 12 of 16 elsewhere, enough
// independent sums to hide the latency of a multiply-add. 3 vectors divide a head dimension of 96 on every set.
constexpr int kTileRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kTileVectors = 3;
// Terms that are worth summing in registers before a tile is added to memory: their rows of the right factor stay in
// the first-level cache, and a long sum is rounded in pieces.
constexpr int64_t kTileDepth = 128;
template <class A>
constexpr int kTileColumns = kTileVectors * kWidth<A>;

// A tile of kTileRows x (wide vectors): c = alpha a b (+ c). Element (i, k) of a is a[i * stride + k], or
// a[k * stride + i] of a transposed factor; rows of b are `b_stride` apart.
template <class A, int wide, bool transposed, bool add>
IFDD_INLINE void tile(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth, A alpha, A* c,
                      int64_t c_stride) {
  Vec<A> sum[kTileRows][wide];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) sum[i][v] = Vec<A>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> row[wide];
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) row[v] = read(b + k * b_stride + v * kWidth<A>);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const A factor = transposed ? a[k * a_stride + i] : a[i * a_stride + k];
#pragma GCC unroll 3
      for (int v = 0; v < wide; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) {
      A* p = c + i * c_stride + v * kWidth<A>;
      write(p, add ? Vec<A>(read(p) + alpha * sum[i][v]) : Vec<A>(alpha * sum[i][v]));
    }
  }
}

template <class A, bool transposed, bool add>
IFDD_INLINE void tile(int64_t vectors, const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth,
                      A alpha, A* c, int64_t c_stride) {
  static_assert(kTileVectors == 3);
  if (vectors >= 3) {
    tile<A, 3, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  } else if (vectors == 2) {
    tile<A, 2, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  } else {
    tile<A, 1, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  }
}

// c (m, n) = alpha a (m, depth) b (depth, n) (+ c). Panels of kTileColumns columns of b are panel_stride apart.
template <class A, bool add>
__attribute__((noinline)) void multiply(int64_t m, int64_t n, int64_t depth, A alpha, const A* a, int64_t a_stride,
                                        const A* b, int64_t b_stride, int64_t panel_stride, A* c, int64_t c_stride) {
  for (int64_t j = 0; j < n; j += kTileColumns<A>, b += panel_stride) {
    const int64_t vectors = (n - j + kWidth<A> - 1) / kWidth<A>;
    for (int64_t i = 0; i < m; i += kTileRows) {
      tile<A, false, add>(vectors, a + i * a_stride, a_stride, b, b_stride, depth, alpha, c + i * c_stride + j,
                          c_stride);
    }
  }
}

// c (m, n) += alpha a^T b, a (depth, m), b (depth, n).
template <class A>
__attribute__((noinline)) void add_transposed(int64_t m, int64_t n, int64_t depth, A alpha, const A* a,
                                              int64_t a_stride, const A* b, int64_t b_stride, A* c, int64_t c_stride) {
  for (int64_t i = 0; i < m; i += kTileRows) {
    for (int64_t j = 0; j < n; j += kTileColumns<A>) {
      const int64_t vectors = (n - j + kWidth<A> - 1) / kWidth<A>;
      tile<A, true, true>(vectors, a + i, a_stride, b + j, b_stride, depth, alpha, c + i * c_stride + j, c_stride);
    }
  }
}

// The right factor of a product with rows of d elements, `stride` apart: panels of kTileColumns rows, transposed.
// Element (row, k) is at (row / kTileColumns, k, row % kTileColumns); zeros behind the rows.
template <class T, class A>
IFDD_INLINE void pack_panels(const T* rows, int64_t stride, int64_t count, int64_t d, A* out) {
  constexpr int width = kWidth<A>;
  for (int64_t first = 0; first < round_up(count, kTileColumns<A>); first += width) {
    A* panel = out + first / kTileColumns<A> * kTileColumns<A> * d + first % kTileColumns<A>;
    for (int64_t k = 0; k < d; k += width) {
      const int64_t columns = d - k < width ? d - k : width;
      Vec<A> block[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) {
        block[i] = Vec<A>{};
        if (first + i >= count) continue;
        const T* in = rows + (first + i) * stride + k;
        block[i] = columns == width ? read(in) : Partial{static_cast<int>(columns)}.read(in);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int l = 0; l < width; ++l) {
        if (l < columns) write(panel + (k + l) * kTileColumns<A>, block[l]);
      }
    }
  }
}

}  // namespace ifdd::cpu::IFDD_ISA
