// Inner loops of split_frames; compiled once per instruction set (see ifdd/isa.h), so no standard library code here.
#include "split_frames.h"

#include <type_traits>

#include "ifdd/pack.h"
#include "ifdd/simd.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// y[j] of an output row, in the accumulation type.
template <class T>
struct Row {
  using A = acc_t<T>;
  const T* first;
  const T* second;
  A keep;
  A take;
};

template <class T>
IFDD_INLINE Row<T> make_row(const T* x, const Sample<acc_t<T>>& s, const SplitSizes& size, int64_t b, int64_t n) {
  const auto frame = [&](int64_t t) { return x + ((b * size.T + t) * size.N + n) * size.C; };
  return {frame(s.first), frame(s.second), 1 - s.fraction, s.fraction};
}

// Calls body with a compile-time flag: gathered rows must not be multiplied by a zero weight (0 * inf is NaN).
template <class Body>
IFDD_INLINE void with_lerp(bool lerp, const Body& body) {
  if (lerp) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

template <bool lerp, class T>
IFDD_INLINE acc_t<T> value(const Row<T>& row, int64_t j) {
  if constexpr (lerp) {
    return row.keep * load(row.first + j) + row.take * load(row.second + j);
  } else {
    return load(row.first + j);
  }
}

// Halves are converted a whole row at a time where the set has instructions for it (see ifdd/pack.h).
#if defined(__F16C__)
template <class T>
constexpr bool kByRow = std::is_same_v<T, fp16>;
#else
template <class T>
constexpr bool kByRow = false;
#endif

// The row as the loops read it: itself, or widened into two rows of scratch.
template <bool lerp, class T>
IFDD_INLINE auto readable(const Row<T>& row, int64_t C, acc_t<T>* scratch) {
  if constexpr (kByRow<T>) {
    widen(row.first, C, scratch);
    if constexpr (lerp) widen(row.second, C, scratch + C);
    return Row<acc_t<T>>{scratch, scratch + C, row.keep, row.take};
  } else {
    return row;
  }
}

template <class T>
IFDD_INLINE auto readable(const T* row, int64_t C, acc_t<T>* scratch) {
  if constexpr (kByRow<T>) {
    widen(row, C, scratch);
    return static_cast<const acc_t<T>*>(scratch);
  } else {
    return row;
  }
}

// Calls body with the row to write: out itself, or a row of scratch that is narrowed afterwards.
template <class T, class Body>
IFDD_INLINE void with_output(T* out, int64_t C, acc_t<T>* scratch, const Body& body) {
  if constexpr (kByRow<T>) {
    body(scratch);
    narrow(scratch, C, out);
  } else {
    body(out);
  }
}

template <class A>
IFDD_INLINE A square_root(A v) {
  if constexpr (sizeof(A) == 8) {
    return __builtin_sqrt(v);
  } else {
    return __builtin_sqrtf(v);
  }
}

template <bool lerp, class T>
IFDD_INLINE void write_row(const Row<T>& row, int64_t C, T* __restrict__ out) {
  for_each(C, [&](int64_t j) { store(out + j, value<lerp>(row, j)); });
}

// LayerNorm of the row: two passes for the statistics, since E[y^2] - E[y]^2 cancels.
template <bool lerp, class T, class A>
IFDD_INLINE void write_normalized(const Row<T>& row, int64_t C, const A* __restrict__ weight,
                                  const A* __restrict__ bias, A eps, A* __restrict__ y, T* __restrict__ out,
                                  A* __restrict__ stats) {
  LaneSum<A> sum;
  for_lanes(C, [&](int64_t j, int l) {
    const A v = value<lerp>(row, j);
    y[j] = v;
    sum.lane[l] += v;
  });
  const A mean = total(sum) / static_cast<A>(C);
  LaneSum<A> squares;
  for_lanes(C, [&](int64_t j, int l) {
    const A d = y[j] - mean;
    squares.lane[l] += d * d;
  });
  const A rstd = 1 / square_root(total(squares) / static_cast<A>(C) + eps);
  for_each(C, [&](int64_t j) { store(out + j, (y[j] - mean) * rstd * weight[j] + bias[j]); });
  stats[0] = mean;
  stats[1] = rstd;
}

// Gradient of one output row with respect to y, into grad_y; returns sum_j grad_y[j] (x[second] - x[first])[j].
// grad_weight and grad_bias are added to.
template <bool lerp, class T, class A>
IFDD_INLINE A normalized_row_backward(const Row<T>& row, int64_t C, const T* __restrict__ grad,
                                      const A* __restrict__ weight, A mean, A rstd, A* __restrict__ grad_weight,
                                      A* __restrict__ grad_bias, A* __restrict__ grad_y) {
  LaneSum<A> sum, dot;
  for_lanes(C, [&](int64_t j, int l) {
    const A normalized = (value<lerp>(row, j) - mean) * rstd;
    const A g = load(grad + j);
    const A gw = g * weight[j];
    sum.lane[l] += gw;
    dot.lane[l] += gw * normalized;
    grad_weight[j] += g * normalized;
    grad_bias[j] += g;
  });
  const A mean_grad = total(sum) / static_cast<A>(C);
  const A mean_dot = total(dot) / static_cast<A>(C);
  LaneSum<A> slope;
  for_lanes(C, [&](int64_t j, int l) {
    const A normalized = (value<lerp>(row, j) - mean) * rstd;
    const A g = rstd * (load(grad + j) * weight[j] - mean_grad - normalized * mean_dot);
    grad_y[j] = g;
    if constexpr (lerp) slope.lane[l] += g * (load(row.second + j) - load(row.first + j));
  });
  return lerp ? total(slope) : A(0);
}

template <bool lerp, class T, class A>
IFDD_INLINE A plain_row_backward(const Row<T>& row, int64_t C, const T* __restrict__ grad, A* __restrict__ grad_y) {
  LaneSum<A> slope;
  for_lanes(C, [&](int64_t j, int l) {
    const A g = load(grad + j);
    grad_y[j] = g;
    if constexpr (lerp) slope.lane[l] += g * (load(row.second + j) - load(row.first + j));
  });
  return lerp ? total(slope) : A(0);
}

// An output frame that reads an input frame, and its weight there.
template <class A>
struct Reader {
  const A* grad;
  A factor;
};

// out = (start ? 0 : sum) + the first `count` readers, in order; `out` is the row itself when `last`, else `sum`.
template <int count, class T, class A>
IFDD_INLINE void add_readers(const Reader<A>* reader, int64_t C, bool start, bool last, A* __restrict__ sum,
                             T* __restrict__ out) {
  Reader<A> r[count];
  for (int i = 0; i < count; ++i) r[i] = reader[i];
  const auto value = [&](int64_t j, A from) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) from += r[i].factor * r[i].grad[j];
    return from;
  };
  if (start && last) {
    for_each(C, [&](int64_t j) { store(out + j, value(j, A(0))); });
  } else if (start) {
    for_each(C, [&](int64_t j) { sum[j] = value(j, A(0)); });
  } else if (last) {
    for_each(C, [&](int64_t j) { store(out + j, value(j, sum[j])); });
  } else {
    for_each(C, [&](int64_t j) { sum[j] = value(j, sum[j]); });
  }
}

// Row of the gradient of input frame t: the output frames that read it, each with its weight. Two of them on average,
// so they are gathered four at a time, without passes over the row for the sum.
template <class T, class A>
IFDD_INLINE void gather_input_gradient(const Sample<A>* samples, int64_t K, int64_t t, int64_t C,
                                       const A* __restrict__ grad_y, A* __restrict__ sum, T* __restrict__ out) {
  Reader<A> reader[4];
  int count = 0;
  bool start = true;
  for (int64_t k = 0; k < K; ++k) {
    const Sample<A>& s = samples[k];
    A factor = 0;
    if (s.first == t) factor += s.lerp ? 1 - s.fraction : A(1);
    if (s.lerp && s.second == t) factor += s.fraction;
    if (factor == 0) continue;
    if (count == 4) {
      add_readers<4>(reader, C, start, false, sum, out);
      start = false;
      count = 0;
    }
    reader[count++] = {grad_y + k * C, factor};
  }
  switch (count) {
    case 0:
      return for_each(C, [&](int64_t j) { store(out + j, A(0)); });
    case 1:
      return add_readers<1>(reader, C, start, true, sum, out);
    case 2:
      return add_readers<2>(reader, C, start, true, sum, out);
    case 3:
      return add_readers<3>(reader, C, start, true, sum, out);
    default:
      return add_readers<4>(reader, C, start, true, sum, out);
  }
}

}  // namespace

template <class T>
void split_forward(const SplitForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const SplitSizes& size = op.size;
  const int64_t K = size.Ks + size.Kd, C = size.C;
  A* y = scratch;
  A* widened = scratch + C;
  A* result = widened + 2 * C;
  // All output frames of a position together: its T input rows stay in the first-level cache.
  for (int64_t position = begin; position < end; ++position) {
    const int64_t b = position / size.N, n = position % size.N;
    for (int64_t k = 0; k < K; ++k) {
      const int group = k >= size.Ks;
      const int64_t slot = group ? b * size.Kd + k - size.Ks : b * size.Ks + k;
      const Sample<A>& sample = op.samples[b * K + k];
      with_lerp(sample.lerp, [&](auto flag) __attribute__((always_inline)) {
        constexpr bool lerp = decltype(flag)::value;
        const auto row = readable<lerp>(make_row(op.x, sample, size, b, n), C, widened);
        with_output(op.frames[group] + (slot * size.N + n) * C, C, result,
                    [&](auto* out) __attribute__((always_inline)) {
                      if (op.weight[group] == nullptr) {
                        write_row<lerp>(row, C, out);
                      } else {
                        write_normalized<lerp>(row, C, op.weight[group], op.bias[group], op.eps, y, out,
                                               op.stats + ((b * K + k) * size.N + n) * 2);
                      }
                    });
      });
    }
  }
}

template <class T>
void split_backward(const SplitBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const SplitSizes& size = op.size;
  const int64_t K = size.Ks + size.Kd, C = size.C, per_clip = chunks(size);
  A* grad_y = scratch;           // (K, C)
  A* row_sum = scratch + K * C;  // (C)
  A* widened = row_sum + C;      // (3, C): two rows of x and one of the gradient, or the result
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t b = chunk / per_clip, first = chunk % per_clip * kChunk;
    const int64_t last = first + kChunk < size.N ? first + kChunk : size.N;
    const Sample<A>* samples = op.samples + b * K;
    A* index_partial = op.index_partial == nullptr ? nullptr : op.index_partial + chunk * K;
    A* weight_partial = op.weight_partial == nullptr ? nullptr : op.weight_partial + chunk * 4 * C;
    if (index_partial != nullptr) for_each(K, [&](int64_t k) { index_partial[k] = 0; });
    if (weight_partial != nullptr) for_each(4 * C, [&](int64_t j) { weight_partial[j] = 0; });
    for (int64_t n = first; n < last; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        const int group = k >= size.Ks;
        const int64_t slot = group ? b * size.Kd + k - size.Ks : b * size.Ks + k;
        const auto grad = readable(op.grad_frames[group] + (slot * size.N + n) * C, C, widened + 2 * C);
        A slope = 0;
        with_lerp(samples[k].lerp, [&](auto flag) __attribute__((always_inline)) {
          constexpr bool lerp = decltype(flag)::value;
          const auto row = readable<lerp>(make_row(op.x, samples[k], size, b, n), C, widened);
          if (weight_partial == nullptr) {
            slope = plain_row_backward<lerp>(row, C, grad, grad_y + k * C);
          } else {
            const A* stats = op.stats + ((b * K + k) * size.N + n) * 2;
            A* partial = weight_partial + group * 2 * C;
            slope = normalized_row_backward<lerp>(row, C, grad, op.weight[group], stats[0], stats[1], partial,
                                                  partial + C, grad_y + k * C);
          }
        });
        // A clamped position passes no gradient, not even one of x that is not finite.
        if (index_partial != nullptr && samples[k].slope != 0) index_partial[k] += slope * samples[k].slope;
      }
      for (int64_t t = 0; t < size.T; ++t) {
        with_output(op.grad_x + ((b * size.T + t) * size.N + n) * C, C, widened,
                    [&](auto* out) __attribute__((always_inline)) {
                      gather_input_gradient(samples, K, t, C, grad_y, row_sum, out);
                    });
      }
    }
  }
}

template <class A>
void sum_rows(const A* in, int64_t rows, int64_t stride, int64_t begin, int64_t end, A* out) {
  // Blocks of columns, summed in double: there may be many thousands of partial sums.
  for (int64_t c = begin; c < end; c += kLanes) {
    const int64_t width = end - c < kLanes ? end - c : kLanes;
    LaneSum<double> sum;
    for (int64_t r = 0; r < rows; ++r) for_each(width, [&](int64_t j) { sum.lane[j] += in[r * stride + c + j]; });
    for_each(width, [&](int64_t j) { out[c + j] = static_cast<A>(sum.lane[j]); });
  }
}

#define INSTANTIATE(T)                                                                 \
  template void split_forward<T>(const SplitForward<T>&, int64_t, int64_t, acc_t<T>*); \
  template void split_backward<T>(const SplitBackward<T>&, int64_t, int64_t, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE
template void sum_rows<float>(const float*, int64_t, int64_t, int64_t, int64_t, float*);
template void sum_rows<double>(const double*, int64_t, int64_t, int64_t, int64_t, double*);

}  // namespace ifdd::cpu::IFDD_ISA
