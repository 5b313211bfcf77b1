// Kernels of pooled_attention and lifting_attention, free of torch: what csrc/cpu/attention.h hands to
// csrc/cpu/kernels/attention.cpp. The two ops are one attention; they differ by the position bias and the residual.
//
// A unit of work is a block of queries of one (batch, head), backward a fixed chunk of such blocks. It holds the scores
// of its block against all keys, a few rows that stay in the second-level cache, so the softmax is exact and in one
// piece, and no (queries, keys) matrix is ever stored.
#pragma once

#include <cstdint>

#include "ifdd/padding.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

struct AttentionSizes {
  int64_t B, Nq, Nk, h, d;
};

// No instruction set's panel of keys is wider.
constexpr int64_t kPanel = 3 * kPad;

IFDD_INLINE constexpr int64_t score_stride(const AttentionSizes& s) { return padded(s.Nk) + kPad; }

// Queries in a block: as many as keep `matrices` score rows of all keys within 256 KiB of float, 8 to `most`.
IFDD_INLINE constexpr int64_t block_rows(const AttentionSizes& s, int64_t matrices, int64_t most) {
  const int64_t rows = 65536 / (matrices * score_stride(s)) / 8 * 8;
  return rows < 8 ? 8 : rows > most ? most : rows;
}
constexpr int64_t kForwardRows = 128;
IFDD_INLINE constexpr int64_t forward_rows(const AttentionSizes& s) { return block_rows(s, 1, kForwardRows); }
IFDD_INLINE constexpr int64_t backward_rows(const AttentionSizes& s) { return block_rows(s, 2, 64); }
IFDD_INLINE constexpr int64_t forward_blocks(const AttentionSizes& s) {
  return (s.Nq + forward_rows(s) - 1) / forward_rows(s);
}

// Queries whose key and value gradients are summed before they are stored as partial sums. Fixed, so that the bits of
// the result are the same for any number of threads; even shares of at least 16 d, so that no chunk is a small rest and
// the partial sums, 2 d Nk a chunk, are at most an eighth of one matrix of scores; at most eight of a clip and head,
// which bounds the memory of the partial sums by that of eight keys and values.
IFDD_INLINE constexpr int64_t chunk_rows(const AttentionSizes& s) {
  const int64_t least = 16 * s.d < 512 ? 512 : 16 * s.d, wanted = s.Nq < 2 * least ? 1 : s.Nq / least;
  const int64_t shares = wanted < 8 ? wanted : 8;
  return round_up((s.Nq + shares - 1) / shares, backward_rows(s));
}
IFDD_INLINE constexpr int64_t chunks(const AttentionSizes& s) {
  return s.Nq == 0 ? 0 : (s.Nq + chunk_rows(s) - 1) / chunk_rows(s);
}

// (B, N, h, d) of any strides but a dense last axis, in elements.
template <class T>
struct Tokens {
  const T* data;
  int64_t batch, token, head;
};

// The decomposed position bias; no bias if rows is null. Axes are in the order of a grid: t, h, w.
template <class A>
struct Position {
  int64_t q_grid[3], k_grid[3];
  const A* rows;      // the three tables one below the other, rows of padded(d) elements, zeros at their ends
  int64_t row_count;  // of all three
  // Offset in `rows` of the row of a (query, key) pair of an axis: the sum of one of Q and one of K numbers.
  const int64_t *query_part[3], *key_part[3];
};

enum class Residual { query, value };  // query: of all rows but the first

template <class T>
struct AttentionForward {
  using A = acc_t<T>;
  AttentionSizes size;
  Tokens<T> q, k, v;
  Position<A> position;
  Residual residual;
  A scale;
  T* out;             // (B, Nq, h*d)
  A* log_sum;         // (B, h, Nq)
  MatrixTiles tiles;  // off unless T is bf16
};

template <class T>
struct AttentionBackward {
  using A = acc_t<T>;
  AttentionSizes size;
  Tokens<T> grad, q, k, v;
  Position<A> position;
  Residual residual;
  A scale;
  const A* log_sum;
  T *grad_q, *grad_k, *grad_v;  // (B, N, h, d)
  A* partial;                   // (B * h * chunks, 2, padded(Nk), padded(d)) of k and v; null with a single chunk
  A* table_partial;             // (B * h * chunks, row_count, padded(d)); null without bias
  MatrixTiles tiles;            // off unless T is bf16
};

// Elements of scratch memory for one thread, aligned to 64 bytes.
IFDD_INLINE constexpr int64_t position_scratch(const int64_t (&k)[3]) {
  return padded(k[1] * k[2]) + kPad + padded(k[0]) + padded(k[1]) + padded(k[2]) + 3 * kPad;
}
IFDD_INLINE constexpr int64_t forward_scratch(const AttentionSizes& s, const int64_t (&k_grid)[3]) {
  const int64_t keys = round_up(s.Nk, kPanel), m = forward_rows(s);
  return keys * s.d + padded(s.Nk) * padded(s.d) + m * (score_stride(s) + 2 * padded(s.d)) + position_scratch(k_grid) +
         8 * kPad;
}
// More of it for matrix tiles (matrix_tiles.h): in 16 bits `factors` of all keys or values, `row_factors` of a block's
// rows, and its weights; and a square of sums.
IFDD_INLINE constexpr int64_t tile_scratch(const AttentionSizes& s, int64_t rows, int64_t factors,
                                           int64_t row_factors) {
  const int64_t keys = round_up(s.Nk, kTileBlock), width = round_up(s.d, kTileBlock), m = round_up(rows, kTileBlock);
  return (factors * keys * width + m * (row_factors * width + keys)) / 2 + kTileBlock * kTileBlock + 8 * kPad;
}
IFDD_INLINE constexpr int64_t forward_tile_scratch(const AttentionSizes& s) {
  return tile_scratch(s, forward_rows(s), 2, 1);
}
IFDD_INLINE constexpr int64_t backward_tile_scratch(const AttentionSizes& s) {
  return tile_scratch(s, backward_rows(s), 3, 2);
}
IFDD_INLINE constexpr int64_t backward_scratch(const AttentionSizes& s, const int64_t (&k_grid)[3]) {
  const int64_t keys = round_up(s.Nk, kPanel), m = backward_rows(s);
  return 2 * keys * s.d + 3 * padded(s.Nk) * padded(s.d) + m * (2 * score_stride(s) + 3 * padded(s.d)) +
         position_scratch(k_grid) + 16 * kPad;
}

// attention_forward: blocks [begin, end) of the B * h * forward_blocks.
// attention_backward: chunks [begin, end) of the B * h * chunks; with a single chunk it writes all three gradients,
// else
//   grad_q and the partial sums.
// sum_chunks: grad_k and grad_v of rows [begin, end) of the B * h * Nk from the partial sums.
IFDD_DECLARE_PER_ISA(template <class T> void attention_forward(const AttentionForward<T>& op, int64_t begin,
                                                               int64_t end, acc_t<T>* scratch);
                     template <class T> void attention_backward(const AttentionBackward<T>& op, int64_t begin,
                                                                int64_t end, acc_t<T>* scratch);
                     template <class T> void sum_chunks(const AttentionBackward<T>& op, int64_t begin, int64_t end);)

}  // namespace ifdd::cpu
