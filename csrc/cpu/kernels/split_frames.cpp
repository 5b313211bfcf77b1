// Inner loops of split_frames; compiled once per instruction set (see ifdd/isa.h), so no standard library code here.
#include "split_frames.h"

#include <type_traits>

#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Slots that are worked on together: enough independent sums to hide the latency of an addition.
constexpr int kTile = 4;

// The rows of x that an output row is made of.
template <class T>
struct Source {
  using A = acc_t<T>;
  const T* first;
  const T* second;
  A keep;
  A take;
};

// The output row in the accumulation type. A gathered row must not be multiplied by a zero weight: 0 * inf is NaN.
template <bool lerp, class T, class Lanes>
IFDD_INLINE Vec<acc_t<T>> value(const Source<T>& s, int64_t c, Lanes lanes) {
  if constexpr (lerp) {
    return s.keep * lanes.read(s.first + c) + s.take * lanes.read(s.second + c);
  } else {
    return lanes.read(s.first + c);
  }
}

// Slots [first, first + tile) of a group at one position, and what lies one position further.
template <class T>
struct Slots {
  using A = acc_t<T>;
  int64_t slot[kTile];  // of all K
  int64_t row[kTile];   // of the group's (B * Ks, N) or (B * Kd, N) rows
  Source<T> source[kTile];
  int64_t next;  // elements to the same row of x at the next position
};

template <int tile, class Op, class T>
IFDD_INLINE Slots<T> find_slots(const Op& op, const Frames<T>& x, int64_t b, int64_t n, int group, int64_t first) {
  const int64_t K = op.size.Ks + op.size.Kd, count = group == 0 ? op.size.Ks : op.size.Kd;
  const T* position = x.data + b * x.batch + n * x.token;
  Slots<T> found;
  unrolled<tile>([&](auto i) __attribute__((always_inline)) {
    found.slot[i] = first + i + (group == 0 ? 0 : op.size.Ks);
    found.row[i] = (b * count + first + i) * op.size.N + n;
    const auto& s = op.samples[b * K + found.slot[i]];
    found.source[i] = {position + s.first * x.frame, position + s.second * x.frame, 1 - s.fraction, s.fraction};
  });
  found.next = x.token;
  return found;
}

// Calls body(group, first, tile) for the tiles of both groups; tile is a compile-time number.
template <class Body>
IFDD_INLINE void for_tiles(const SplitSizes& size, const Body& body) {
  for (int group = 0; group < 2; ++group) {
    const int64_t count = group == 0 ? size.Ks : size.Kd;
    for (int64_t first = 0; first < count; first += kTile) {
      with_count<kTile>(count - first < kTile ? count - first : kTile,
                        [&](auto tile) __attribute__((always_inline)) { body(group, first, tile); });
    }
  }
}

// A sample of a row of many channels: this many pieces of this many channels, spread evenly.
constexpr int64_t kPieces = 8, kPiece = 16;

// body(c, lanes) for the vectors of the sample, or of the whole row where it is no longer; returns the channels.
template <class A, class Body>
IFDD_INLINE int64_t for_sample(int64_t C, const Body& body) {
  if (C <= kPieces * kPiece) {
    for_vectors<A>(C, body);
    return C;
  }
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    const int64_t first = piece * C / kPieces / kPiece * kPiece;
    for_vectors<A>(kPiece, [&](int64_t c, auto lanes) __attribute__((always_inline)) { body(first + c, lanes); });
  }
  return kPieces * kPiece;
}

// LayerNorm. The moments come from one pass over the deviations d = y - s from the mean s of a sample:
// var = E[d^2] - E[d]^2. E[y^2] - E[y]^2 could lose all precision; here, whatever y, the variance holds at least
// p / (1 - p) E[d]^2 with p the sample's part of the channels, so no more than a factor 1 / p is lost, and nothing
// where the sample is like the rest. The rows are blended anew in both passes, which costs less than a copy of them in
// the first-level cache.
template <bool lerp, int tile, class T, class A>
IFDD_INLINE void write_normalized(const Slots<T>& slots, int64_t C, const A* weight, const A* bias, A eps,
                                  T* const* out, A* const* stats) {
  Vec<A> sum[tile] = {}, squares[tile] = {};
  A shift[tile], mean[tile], rstd[tile];
  const int64_t sampled = for_sample<A>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    unrolled<tile>([&](auto i) __attribute__((always_inline)) { sum[i] += value<lerp>(slots.source[i], c, lanes); });
  });
  unrolled<tile>([&](auto i) __attribute__((always_inline)) {
    shift[i] = total(sum[i]) / static_cast<A>(sampled);
    sum[i] = Vec<A>{};
  });
  for_vectors<A>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    unrolled<tile>([&](auto i) __attribute__((always_inline)) {
      const Vec<A> d = lanes.keep(value<lerp>(slots.source[i], c, lanes) - shift[i]);
      sum[i] += d;
      squares[i] += d * d;
    });
  });
  unrolled<tile>([&](auto i) __attribute__((always_inline)) {
    const A moved = total(sum[i]) / static_cast<A>(C);
    mean[i] = shift[i] + moved;
    const A variance = total(squares[i]) / static_cast<A>(C) - moved * moved;
    rstd[i] = 1 / sqrt((variance < 0 ? A(0) : variance) + eps);
    stats[i][0] = mean[i];
    stats[i][1] = rstd[i];
  });
  for_vectors<A>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Vec<A> w = lanes.read(weight + c), b = lanes.read(bias + c);
    unrolled<tile>([&](auto i) __attribute__((always_inline)) {
      // To the second-level cache, which waits for three times as many lines as the first: the prefetcher of the
      // processor loses track of so many rows, each in another page.
      __builtin_prefetch(out[i] + C + c, 0, 2);
      lanes.write(out[i] + c, (value<lerp>(slots.source[i], c, lanes) - mean[i]) * rstd[i] * w + b);
    });
  });
}

template <bool lerp, class T>
IFDD_INLINE void forward_positions(const SplitForward<T>& op, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const SplitSizes& size = op.size;
  const int64_t K = size.Ks + size.Kd, C = size.C;
  // All output frames of a position together: its T input rows stay in the first-level cache.
  for (int64_t position = begin; position < end; ++position) {
    const int64_t b = position / size.N, n = position % size.N;
    for_tiles(size, [&](int group, int64_t first, auto count) __attribute__((always_inline)) {
      constexpr int tile = decltype(count)::value;
      const Slots<T> slots = find_slots<tile>(op, op.x, b, n, group, first);
      T* out[tile];
      unrolled<tile>([&](auto i) __attribute__((always_inline)) { out[i] = op.frames[group] + slots.row[i] * C; });
      if (op.weight[group] != nullptr) {
        A* stats[tile];
        unrolled<tile>([&](auto i) __attribute__((always_inline)) {
          stats[i] = op.stats + ((b * K + slots.slot[i]) * size.N + n) * 2;
        });
        return write_normalized<lerp, tile>(slots, C, op.weight[group], op.bias[group], op.eps, out, stats);
      }
      for_vectors<A>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        unrolled<tile>([&](auto i) __attribute__((always_inline)) {
          lanes.write(out[i] + c, value<lerp>(slots.source[i], c, lanes));
        });
      });
    });
  }
}

// The two means in the gradient of a LayerNorm, (mean(g w), mean(g w y)) per slot with y the normalised row; adds to
// the gradients of its weight and bias.
template <bool lerp, int tile, class T, class A>
IFDD_INLINE void reduce_gradient(const Slots<T>& slots, int64_t C, const T* const* grad, const A* weight,
                                 const A* const* stats, A* grad_weight, A* grad_bias, A* means) {
  Vec<A> sum[tile] = {}, dot[tile] = {};
  for_vectors<A>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Vec<A> w = lanes.read(weight + c);
    Vec<A> weight_sum = lanes.read(grad_weight + c), bias_sum = lanes.read(grad_bias + c);
    unrolled<tile>([&](auto i) __attribute__((always_inline)) {
      __builtin_prefetch(slots.source[i].first + slots.next + c);
      __builtin_prefetch(grad[i] + C + c);
      const Vec<A> normalized = (value<lerp>(slots.source[i], c, lanes) - stats[i][0]) * stats[i][1];
      const Vec<A> g = lanes.read(grad[i] + c);  // 0 behind the row, and with it all sums
      sum[i] += g * w;
      dot[i] += g * w * normalized;
      weight_sum += g * normalized;
      bias_sum += g;
    });
    lanes.write(grad_weight + c, weight_sum);
    lanes.write(grad_bias + c, bias_sum);
  });
  unrolled<tile>([&](auto i) __attribute__((always_inline)) {
    means[2 * slots.slot[i]] = total(sum[i]) / static_cast<A>(C);
    means[2 * slots.slot[i] + 1] = total(dot[i]) / static_cast<A>(C);
  });
}

// Channels [begin, begin + width) of the gradient before the norm, into grad_y (K, kStrip); adds
// <grad_y, x[second] - x[first]> to the slopes.
template <bool lerp, int tile, class T, class A>
IFDD_INLINE void strip_gradient(const Slots<T>& slots, int64_t begin, int64_t width, const T* const* grad,
                                const A* weight, const A* const* stats, const A* means, A* grad_y, A* slopes) {
  unrolled<tile>([&](auto i) __attribute__((always_inline)) {
    const Source<T>& source = slots.source[i];
    A* out = grad_y + slots.slot[i] * kStrip;
    Vec<A> slope = read(slopes + slots.slot[i] * kPad);
    for_vectors<A>(width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      Vec<A> g = lanes.read(grad[i] + begin + c);
      if (weight != nullptr) {
        const Vec<A> normalized = (value<lerp>(source, begin + c, lanes) - stats[i][0]) * stats[i][1];
        g = stats[i][1] *
            (g * lanes.read(weight + begin + c) - means[2 * slots.slot[i]] - normalized * means[2 * slots.slot[i] + 1]);
      }
      write(out + c, g);
      if constexpr (lerp) slope += g * (lanes.read(source.second + begin + c) - lanes.read(source.first + begin + c));
    });
    write(slopes + slots.slot[i] * kPad, slope);
  });
}

// The gradient of every input frame in a strip: the output frames that read it, each with its weight.
template <class T, class A>
IFDD_INLINE void gather_readers(const SplitBackward<T>& op, int64_t b, int64_t n, int64_t begin, int64_t width,
                                const A* grad_y) {
  const SplitSizes& size = op.size;
  for (int64_t t = 0; t < size.T; ++t) {
    const Reader<A>* first = op.readers + op.reader_begin[b * size.T + t];
    const Reader<A>* last = op.readers + op.reader_begin[b * size.T + t + 1];
    T* out = op.grad_x + ((b * size.T + t) * size.N + n) * size.C + begin;
    for_vectors<A>(width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      Vec<A> sum = {};
      for (const Reader<A>* r = first; r != last; ++r) sum += r->factor * read(grad_y + r->slot * kStrip + c);
      lanes.write(out + c, sum);
    });
  }
}

template <bool lerp, class T>
IFDD_INLINE void backward_position(const SplitBackward<T>& op, int64_t b, int64_t n, acc_t<T>* index_partial,
                                   acc_t<T>* weight_partial, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const SplitSizes& size = op.size;
  const int64_t K = size.Ks + size.Kd, C = size.C;
  A* grad_y = scratch;
  A* slopes = grad_y + K * kStrip;
  A* means = slopes + K * kPad;
  for_each(K * kPad, [&](int64_t i) { slopes[i] = 0; });
  const auto with_slots = [&](const auto& body) __attribute__((always_inline)) {
    for_tiles(size, [&](int group, int64_t first, auto count) __attribute__((always_inline)) {
      constexpr int tile = decltype(count)::value;
      const Slots<T> slots = find_slots<tile>(op, op.x, b, n, group, first);
      const T* grad[tile];
      const A* stats[tile];
      unrolled<tile>([&](auto i) __attribute__((always_inline)) {
        grad[i] = op.grad_frames[group] + slots.row[i] * C;
        stats[i] = op.stats == nullptr ? nullptr : op.stats + ((b * K + slots.slot[i]) * size.N + n) * 2;
      });
      body(count, slots, group, grad, stats);
    });
  };
  if (weight_partial != nullptr) {
    with_slots([&](auto tile, const Slots<T>& slots, int group, const T* const* grad, const A* const* stats)
                   __attribute__((always_inline)) {
                     A* partial = weight_partial + group * 2 * C;
                     reduce_gradient<lerp, decltype(tile)::value>(slots, C, grad, op.weight[group], stats, partial,
                                                                  partial + C, means);
                   });
  }
  for (int64_t begin = 0; begin < C; begin += kStrip) {
    const int64_t width = C - begin < kStrip ? C - begin : kStrip;
    with_slots([&](auto tile, const Slots<T>& slots, int group, const T* const* grad, const A* const* stats)
                   __attribute__((always_inline)) {
                     strip_gradient<lerp, decltype(tile)::value>(slots, begin, width, grad, op.weight[group], stats,
                                                                 means, grad_y, slopes);
                   });
    gather_readers(op, b, n, begin, width, grad_y);
  }
  if (index_partial == nullptr) return;
  for (int64_t k = 0; k < K; ++k) {
    // A clamped position passes no gradient, not even one of x that is not finite.
    const A slope = op.samples[b * K + k].slope;
    if (slope != 0) index_partial[k] += slope * total(read(slopes + k * kPad));
  }
}

}  // namespace

template <class T>
void split_forward(const SplitForward<T>& op, int64_t begin, int64_t end) {
  if (op.gather) {
    forward_positions<false>(op, begin, end);
  } else {
    forward_positions<true>(op, begin, end);
  }
}

template <class T>
void split_backward(const SplitBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const SplitSizes& size = op.size;
  const int64_t K = size.Ks + size.Kd, C = size.C, per_clip = chunks(size);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t b = chunk / per_clip, part = chunk % per_clip;
    const int64_t first = size.N * part / per_clip, last = size.N * (part + 1) / per_clip;
    A* index_partial = op.index_partial == nullptr ? nullptr : op.index_partial + chunk * K;
    A* weight_partial = op.weight_partial == nullptr ? nullptr : op.weight_partial + chunk * 4 * C;
    if (index_partial != nullptr) for_each(K, [&](int64_t k) { index_partial[k] = 0; });
    if (weight_partial != nullptr) for_each(4 * C, [&](int64_t j) { weight_partial[j] = 0; });
    for (int64_t n = first; n < last; ++n) {
      if (op.gather) {
        backward_position<false>(op, b, n, index_partial, weight_partial, scratch);
      } else {
        backward_position<true>(op, b, n, index_partial, weight_partial, scratch);
      }
    }
  }
}

#define INSTANTIATE(T)                                                      \
  template void split_forward<T>(const SplitForward<T>&, int64_t, int64_t); \
  template void split_backward<T>(const SplitBackward<T>&, int64_t, int64_t, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
