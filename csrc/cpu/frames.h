// Frames (B, T, N, C) and the tokenizer's arguments, checked and made readable for the kernels.
#pragma once

#include <algorithm>
#include <limits>

#include "buffer.h"
#include "floating.h"
#include "kernels/frame_tokens.h"
#include "kernels/split_frames.h"
#include "kernels/sum_rows.h"

namespace ifdd::cpu {

// Itself where channels are dense (any other strides), else a copy.
inline Tensor dense_channels(const Tensor& x) { return x.size(3) == 1 || x.stride(3) == 1 ? x : as_contiguous(x); }

template <class T>
Frames<T> frames_of(const Tensor& x) {
  return {data<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

// Frames on an (height, width) grid to be pooled to (pool, pool); S is left to the caller.
inline TokenSizes check_grid(const char* op, const Tensor& x, int64_t height, int64_t width, int64_t pool) {
  check_floating(op, "x", x, {-1, -1, -1, -1});
  const auto check_side = [&](const char* argument, int64_t side) {
    // Products of two sides must not overflow.
    if (side < 1 || side > std::numeric_limits<int32_t>::max()) {
      fail(op, argument, "expected a positive 32-bit integer, got ", side);
    }
  };
  check_side("height", height);
  check_side("width", width);
  check_side("pool", pool);
  if (x.size(2) != height * width) {
    fail(op, "x", "expected N = height * width = ", height, " * ", width, " tokens a frame, got shape ",
         shape_text(x.sizes()));
  }
  if (x.size(3) < 1) fail(op, "x", "expected at least one channel, got shape ", shape_text(x.sizes()));
  check_extent(op, "pool", {x.size(0), pool, pool, x.size(3)});
  TokenSizes size{};
  size.T = x.size(1);
  size.N = x.size(2);
  size.C = x.size(3);
  size.H = height;
  size.W = width;
  size.P = pool;
  size.width = padded(size.C);
  return size;
}

inline void check_even_frames(const char* op, const Tensor& x) {
  if (x.size(1) < 2 || x.size(1) % 2 != 0) {
    fail(op, "x", "expected an even number of frames, at least 2, got shape ", shape_text(x.sizes()));
  }
}

inline TokenSizes check_tokenizer(const char* op, const Tensor& x, const char* weight_name, const Tensor& weight,
                                  const char* bias_name, const Tensor& bias, int64_t height, int64_t width,
                                  int64_t pool) {
  TokenSizes size = check_grid(op, x, height, width, pool);
  check_parameter(op, weight_name, weight, {-1, size.C}, x.scalar_type());
  size.S = weight.size(0);
  if (size.S < 1) fail(op, weight_name, "expected at least one row, got shape ", shape_text(weight.sizes()));
  check_parameter(op, bias_name, bias, {size.S}, x.scalar_type());
  check_extent(op, "pool", {x.size(0), size.T, size.S, pool, pool});
  check_extent(op, weight_name, {size.S, size.N});
  return size;
}

// Rows of the tokenizer's weight in the accumulation type, padded with zeros.
template <class A>
Buffer<A> packed_weight(const TokenSizes& size, const Tensor& accumulable_weight) {
  Buffer<A> packed(size.S * size.width);
  const A* source = data<A>(accumulable_weight);
  for (int64_t s = 0; s < size.S; ++s) {
    std::copy_n(source + s * size.C, size.C, packed.data() + s * size.width);
  }
  return packed;
}

// The tokenizer of one call: x (dense channels) of element type T and its parameters.
template <class T>
struct Tokenizer {
  using A = acc_t<T>;
  TokenSizes size;
  int64_t frames;  // B * T
  Frames<T> x;
  Tensor bias;
  Buffer<A> weight;

  Tokenizer(const TokenSizes& sizes, const Tensor& rows, const Tensor& weight_given, const Tensor& bias_given)
      : size(sizes),
        frames(rows.size(0) * rows.size(1)),
        x(frames_of<T>(rows)),
        bias(accumulable(bias_given)),
        weight(packed_weight<A>(sizes, accumulable(weight_given))) {}

  // Tokens (B * T, S, P, P) of frames [begin, end); `before`, the activation's argument, may be null.
  void forward(int64_t begin, int64_t end, A* before, A* tokens) const {
    const TokenForward<T> call{size, x, weight.data(), data<A>(bias), before, tokens};
    const auto kernel = IFDD_SELECT(frame_tokens<T>);
    stable::parallel_for(begin, end, 1, [&](int64_t first, int64_t last) {
      Buffer<A> scratch(token_forward_scratch(size));
      kernel(call, first, last, scratch.data());
    });
  }
};

// Tokens back to the frames and the parameters, a chunk of frames at a time; `before` as stored by forward, or null:
// recomputed. `add`: adds to grad_x (B, T, N, C) instead of writing it.
template <class T>
struct TokenizerBackward {
  using A = acc_t<T>;
  int64_t frames_per_chunk, chunks;
  Buffer<A> weight_partial, bias_partial;
  TokenBackward<T> call;

  TokenizerBackward(const TokenizerBackward&) = delete;  // `call` points into it
  TokenizerBackward(const Tokenizer<T>& of, const A* before, const A* grad_tokens, T* grad_x, bool add = false)
      : frames_per_chunk(token_chunk(of.frames, of.size.T)),
        chunks((of.frames + frames_per_chunk - 1) / frames_per_chunk),
        weight_partial(chunks * of.size.S * of.size.width),
        bias_partial(chunks * of.size.S),
        call{of.size,
             of.x,
             of.weight.data(),
             data<A>(of.bias),
             before,
             grad_tokens,
             of.frames,
             frames_per_chunk,
             add,
             grad_x,
             weight_partial.data(),
             bias_partial.data()} {}

  // Chunks [begin, end).
  void run(int64_t begin, int64_t end) const {
    const auto kernel = IFDD_SELECT(frame_tokens_backward<T>);
    stable::parallel_for(begin, end, 1, [&](int64_t first, int64_t last) {
      Buffer<A> scratch(token_backward_scratch(call.size));
      kernel(call, first, last, scratch.data());
    });
  }

  // grad_weight (S, C) and grad_bias (S), once all chunks have run.
  void sum(A* grad_weight, A* grad_bias) const {
    const TokenSizes& size = call.size;
    const auto kernel = IFDD_SELECT(sum_rows<A>);
    const int64_t grain = std::max<int64_t>(1, 32768 / (std::max<int64_t>(1, chunks) * size.width));
    stable::parallel_for(0, size.S, grain, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        const A* partial = weight_partial.data() + s * size.width;
        kernel(partial, chunks, size.S * size.width, 0, size.C, grad_weight + s * size.C);
      }
    });
    kernel(bias_partial.data(), chunks, size.S, 0, size.S, grad_bias);
  }
};

}  // namespace ifdd::cpu
