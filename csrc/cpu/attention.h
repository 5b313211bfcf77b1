// What pooled_attention.cpp and lifting_attention.cpp share on the host side: checks of query, key and value, views of
// them, and the calls of the kernels with their memory and threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "check.h"
#include "kernels/attention.h"
#include "tensor.h"

namespace ifdd::cpu::attention {

namespace stable = torch::stable;

// Query (B, Nq, h, d) with its sizes; Nk is the caller's to fill in.
inline AttentionSizes check_query(const char* op, const Tensor& query) {
  check_tensor(op, "query", query, {-1, -1, -1, -1},
               {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  const AttentionSizes size{query.size(0), query.size(1), 0, query.size(2), query.size(3)};
  if (size.d < 1) fail(op, "query", "expected at least one channel, got shape ", shape_text(query.sizes()));
  return size;
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& out, const Tensor& log_sum,
                           const AttentionSizes& s, ScalarType dtype) {
  check_tensor(op, "grad_out", grad, {s.B, s.Nq, s.h * s.d}, {dtype});
  check_tensor(op, "out", out, {s.B, s.Nq, s.h * s.d}, {dtype});
  check_tensor(op, "log_sum", log_sum, {s.B, s.h, s.Nq}, {accumulation_dtype(dtype)});
}

// A tensor whose last axis is dense: itself, or a copy.
inline Tensor dense(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) == 1 ? tensor : stable::contiguous(tensor);
}

template <class T>
Tokens<T> tokens_of(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// At least this many multiply-adds a thread: about 20 us.
inline int64_t grain(double work_per_unit) {
  return std::max<int64_t>(1, static_cast<int64_t>(0x1p20 / std::max(1.0, work_per_unit)));
}

// Below these sizes, packing and padding to whole tiles may take longer than the tiles save (docs/kernels). The
// stand-in is for tests, so it takes every size.
template <class T>
MatrixTiles tiles_for(const AttentionSizes& s) {
  if (!std::is_same_v<T, bf16>) return MatrixTiles::off;
  const bool worth_it = s.Nq >= 2 * kTileBlock && s.Nk >= 2 * kTileBlock && s.d >= kTileBlock;
  return worth_it || matrix_tiles() == MatrixTiles::emulated ? matrix_tiles() : MatrixTiles::off;
}

template <class T>
void forward(AttentionForward<T> call) {
  using A = acc_t<T>;
  const AttentionSizes& s = call.size;
  call.tiles = tiles_for<T>(s);
  const int64_t units = s.B * s.h * (s.Nk > 0 ? forward_blocks(s) : 0);
  const auto kernel = IFDD_SELECT(attention_forward<T>);
  stable::parallel_for(0, units, grain(2.0 * forward_rows(s) * s.Nk * s.d), [&](int64_t begin, int64_t end) {
    const int64_t more = call.tiles == MatrixTiles::off ? 0 : forward_tile_scratch(s);
    const Scratch<A> scratch(forward_scratch(s, call.position.k_grid) + more);
    kernel(call, begin, end, scratch.get());
  });
}

template <class T>
void backward(AttentionBackward<T> call) {
  using A = acc_t<T>;
  const AttentionSizes& s = call.size;
  call.tiles = tiles_for<T>(s);
  const int64_t units = s.B * s.h * (s.Nk > 0 ? chunks(s) : 0);
  const auto kernel = IFDD_SELECT(attention_backward<T>);
  const double work = 5.0 * std::min(chunk_rows(s), s.Nq) * s.Nk * s.d;
  stable::parallel_for(0, units, grain(work), [&](int64_t begin, int64_t end) {
    const int64_t more = call.tiles == MatrixTiles::off ? 0 : backward_tile_scratch(s);
    const Scratch<A> scratch(backward_scratch(s, call.position.k_grid) + more);
    kernel(call, begin, end, scratch.get());
  });
  if (call.partial != nullptr) {
    const auto sum = IFDD_SELECT(sum_chunks<T>);
    stable::parallel_for(0, s.B * s.h * s.Nk, grain(2.0 * chunks(s) * s.d),
                         [&](int64_t begin, int64_t end) { sum(call, begin, end); });
  }
}

// The partial sums of key and value gradients: (B * h * chunks, 2, padded(Nk), padded(d)), nothing with one chunk.
inline Tensor new_partial(const Tensor& like, const AttentionSizes& s) {
  const int64_t units = chunks(s) > 1 ? s.B * s.h * chunks(s) : 0;
  return empty(like, {units, 2, padded(s.Nk), padded(s.d)}, accumulation_dtype(like.scalar_type()));
}

}  // namespace ifdd::cpu::attention
