// From the correlation of the frames to the indexes of both groups and back, by threads: shared by split_index and
// static_dynamic_split.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "correlation.h"
#include "frames.h"

namespace ifdd::cpu {

inline TokenSizes check_index_inputs(const char* op, const Tensor& x, const Tensor& token_weight,
                                     const Tensor& token_bias, const Tensor& static_weight,
                                     const Tensor& dynamic_weight, int64_t height, int64_t width, int64_t pool) {
  const TokenSizes size =
      check_tokenizer(op, x, "token_weight", token_weight, "token_bias", token_bias, height, width, pool);
  check_even_frames(op, x);
  check_extent(op, "x", {std::max(size.T / 2, x.size(0)), size.T, size.T});
  check_parameter(op, "static_weight", static_weight, {size.T / 2, size.T * size.T}, x.scalar_type());
  check_parameter(op, "dynamic_weight", dynamic_weight, {size.T / 2, size.T * size.T}, x.scalar_type());
  return size;
}

// Clips of offsets that are worth a thread: each costs about T^3 products.
inline int64_t offsets_grain(int64_t T) { return std::max<int64_t>(1, 32768 / (T * T * T)); }

// Clips [begin, end): correlation to indexes.
template <class A>
void find_indexes(const OffsetsForward<A>& call, int64_t begin, int64_t end) {
  const auto kernel = IFDD_SELECT(offsets<A>);
  stable::parallel_for(begin, end, offsets_grain(call.in.T), [&](int64_t first, int64_t last) {
    Buffer<A> scratch(call.in.T * call.in.T);
    kernel(call, first, last, scratch.data());
  });
}

// Indexes back to the correlation and to the weights of the offsets, of B clips.
template <class A>
struct IndexesBackward {
  int64_t B;
  Buffer<A> attention, inner, total;  // total (B, T, T): the whole gradient of the correlation
  OffsetsBackward<A> call{};

  IndexesBackward(const IndexesBackward&) = delete;  // `call` points into it
  IndexesBackward(int64_t clips, const Offsets<A>& in, const A* const grad_index[2], const A* grad_correlation)
      : B(clips), attention(2 * B * in.T * in.T), inner(B * in.T), total(B * in.T * in.T) {
    call.in = in;
    call.grad_correlation = grad_correlation;
    call.total = total.data();
    for (int group = 0; group < 2; ++group) {
      call.grad_index[group] = grad_index[group];
      call.attention[group] = attention.data() + group * B * in.T * in.T;
      call.inner[group] = inner.data() + group * B * (in.T / 2);
    }
  }

  // Clips [begin, end).
  void run(int64_t begin, int64_t end) const {
    const auto kernel = IFDD_SELECT(offsets_backward<A>);
    stable::parallel_for(begin, end, offsets_grain(call.in.T),
                         [&](int64_t first, int64_t last) { kernel(call, first, last); });
  }

  // The gradient of a group's weight (T / 2, T * T), once all clips have run.
  void weight_gradient(int group, A* out) const {
    const auto kernel = IFDD_SELECT(offsets_weight_gradient<A>);
    const int64_t K = call.in.T / 2, pairs = call.in.T * call.in.T;
    const int64_t grain = std::max<int64_t>(256, 65536 / std::max<int64_t>(1, B));
    stable::parallel_for(0, K * pairs, grain, [&](int64_t begin, int64_t end) {
      kernel(call.inner[group], call.attention[group], B, K, pairs, begin, end, out);
    });
  }
};

}  // namespace ifdd::cpu
