// The sampling of two groups of frames along time with their norms, by threads: shared by split_frames and
// static_dynamic_split.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "buffer.h"
#include "frames.h"

namespace ifdd::cpu {

using OptionalTensor = std::optional<Tensor>;

struct SplitInputs {
  int64_t B;
  SplitSizes size;
  ScalarType dtype;
  bool gather;  // integer indexes
};

// The tensors of both norms, or of none.
inline bool check_norms(const char* op, const SplitInputs& in,
                        std::initializer_list<std::pair<const char*, const OptionalTensor*>> norms) {
  const bool given = norms.begin()->second->has_value();
  for (const auto& [argument, tensor] : norms) {
    if (tensor->has_value() != given) {
      fail(op, argument, "expected all norm tensors or none, got ", tensor->has_value() ? "this one" : "None", " but ",
           norms.begin()->first, given ? " is given" : " is None");
    }
    if (given) check_parameter(op, argument, **tensor, {in.size.C}, in.dtype);
  }
  return given;
}

// Position of a fractional index, see the reference: p = index + index / (T - 1) - 1/2, or index itself where aligned.
// A whole frame number is split off first. What is left is small and so are its roundings; as one product p would carry
// those of a number of the size of T. A NaN index gives a NaN output frame.
template <class A>
Sample<A> interpolate(A index, int64_t T, bool aligned) {
  const A last = static_cast<A>(T - 1);
  const A excess = aligned ? A(0) : static_cast<A>(1.0 / static_cast<double>(T - 1)), shift = aligned ? A(0) : A(0.5);
  if (index != index) return {0, 1, index, A(0)};
  // Beyond these the position is clamped anyway; an infinite index would leave nothing.
  const A bounded = std::clamp(index, A(-1), last + 1);
  const A whole = std::floor(bounded), rest = (bounded - whole) + bounded * excess - shift;
  if (whole + rest <= 0) return {0, 1, A(0), A(0)};
  if (whole + rest >= last) return {T - 1, T - 1, A(0), A(0)};
  const A step = std::floor(rest);
  const int64_t first = static_cast<int64_t>(whole + step);
  return {first, first + 1, rest - step, 1 + excess};
}

// Which output frames read which input frame: an average of two, gathered without a search per position.
template <class A>
struct Readers {
  std::vector<Reader<A>> all;
  std::vector<int64_t> begin;

  Readers(const std::vector<Sample<A>>& samples, const SplitInputs& in) {
    const int64_t T = in.size.T, K = in.size.Ks + in.size.Kd;
    all.reserve(2 * samples.size());
    begin.reserve(in.B * T + 1);
    for (int64_t frame = 0; frame < in.B * T; ++frame) {
      begin.push_back(static_cast<int64_t>(all.size()));
      for (int64_t k = 0; k < K; ++k) {
        const Sample<A>& s = samples[frame / T * K + k];
        A factor = 0;
        if (s.first == frame % T) factor += 1 - s.fraction;
        if (s.second == frame % T) factor += s.fraction;
        if (factor != 0) all.push_back({k, factor});
      }
    }
    begin.push_back(static_cast<int64_t>(all.size()));
  }
};

// Norms of both groups in the accumulation type, or none.
template <class A>
struct SplitNorms {
  bool given;
  Tensor weight[2], bias[2];

  // Of each group; the weights only where no bias is needed.
  SplitNorms(bool norm, const OptionalTensor* const weights[2], const OptionalTensor* const biases[2]) : given(norm) {
    for (int group = 0; given && group < 2; ++group) {
      weight[group] = accumulable(**weights[group]);
      if (biases != nullptr) bias[group] = accumulable(**biases[group]);
    }
  }

  const A* weight_data(int group) const { return given ? data<A>(weight[group]) : nullptr; }
  const A* bias_data(int group) const { return given ? data<A>(bias[group]) : nullptr; }
};

// What the kernel takes; what it points to must outlive it.
template <class E>
SplitForward<E> split_call(const SplitInputs& in, const Tensor& rows, const std::vector<Sample<acc_t<E>>>& samples,
                           const SplitNorms<acc_t<E>>& norms, acc_t<E> eps, const Tensor frames[2],
                           const Tensor& stats) {
  SplitForward<E> call{};
  call.size = in.size;
  call.x = frames_of<E>(rows);
  call.gather = in.gather;
  call.samples = samples.data();
  for (int group = 0; group < 2; ++group) {
    call.weight[group] = norms.weight_data(group);
    call.bias[group] = norms.bias_data(group);
    call.frames[group] = mutable_data<E>(frames[group]);
  }
  call.eps = eps;
  call.stats = norms.given ? mutable_data<acc_t<E>>(stats) : nullptr;
  return call;
}

// Positions [begin, end) of the B * N.
template <class E>
void sample_frames(const SplitForward<E>& call, int64_t begin, int64_t end) {
  const auto kernel = IFDD_SELECT(split_forward<E>);
  const SplitSizes& size = call.size;
  const int64_t grain = std::max<int64_t>(1, 32768 / ((size.Ks + size.Kd) * size.C));
  stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { kernel(call, first, last); });
}

// Groups back to the frames, the indexes and the norms, by chunks(size) parts of every clip.
template <class E>
struct SamplingBackward {
  using A = acc_t<E>;
  SplitInputs in;
  bool norm;
  int64_t parts;
  Readers<A> readers;
  Tensor index_partial, weight_partial;
  SplitBackward<E> call{};

  SamplingBackward(const SamplingBackward&) = delete;  // `call` points into it
  SamplingBackward(const SplitInputs& inputs, const Tensor& rows, const std::vector<Sample<A>>& samples,
                   const SplitNorms<A>& norms, const Tensor& stats, const Tensor grads[2], const Tensor& grad_x)
      : in(inputs),
        norm(norms.given),
        parts(chunks(in.size)),
        readers(samples, in),
        index_partial(
            empty(rows, {in.gather ? 0 : in.B * parts, in.size.Ks + in.size.Kd}, accumulation_dtype(in.dtype))),
        weight_partial(empty(rows, {norm ? in.B * parts : 0, 4, in.size.C}, accumulation_dtype(in.dtype))) {
    call.size = in.size;
    call.x = frames_of<E>(rows);
    call.gather = in.gather;
    call.samples = samples.data();
    call.readers = readers.all.data();
    call.reader_begin = readers.begin.data();
    for (int group = 0; group < 2; ++group) {
      call.weight[group] = norms.weight_data(group);
      call.grad_frames[group] = data<E>(grads[group]);
    }
    call.stats = norm ? data<A>(stats) : nullptr;
    call.grad_x = mutable_data<E>(grad_x);
    call.index_partial = in.gather ? nullptr : mutable_data<A>(index_partial);
    call.weight_partial = norm ? mutable_data<A>(weight_partial) : nullptr;
  }

  // Clips [begin, end).
  void run(int64_t begin, int64_t end) const {
    const auto kernel = IFDD_SELECT(split_backward<E>);
    stable::parallel_for(begin * parts, end * parts, 1, [&](int64_t first, int64_t last) {
      Buffer<A> scratch(split_backward_scratch(in.size));
      kernel(call, first, last, scratch.data());
    });
  }

  // The gradients of the indexes of clips [begin, end), once they have run.
  void sum_indexes(int64_t begin, int64_t end, A* const grad_index[2]) const {
    const auto sum = IFDD_SELECT(sum_rows<A>);
    const int64_t Ks = in.size.Ks, Kd = in.size.Kd, K = Ks + Kd;
    for (int64_t b = begin; b < end; ++b) {
      const A* partial = call.index_partial + b * parts * K;
      sum(partial, parts, K, 0, Ks, grad_index[0] + b * Ks);
      sum(partial + Ks, parts, K, 0, Kd, grad_index[1] + b * Kd);
    }
  }

  // The gradients of weight and bias of static, weight and bias of dynamic, each (C), once all clips have run.
  void sum_norms(const Tensor grad_norm[4]) const {
    constexpr int64_t kBlock = 256;
    const auto sum = IFDD_SELECT(sum_rows<A>);
    const int64_t C = in.size.C, blocks = (C + kBlock - 1) / kBlock;
    stable::parallel_for(0, 4 * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / blocks, first = i % blocks * kBlock;
        sum(call.weight_partial + row * C, in.B * parts, 4 * C, first, std::min(C, first + kBlock),
            mutable_data<A>(grad_norm[row]));
      }
    });
  }
};

}  // namespace ifdd::cpu
