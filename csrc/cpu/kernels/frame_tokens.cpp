// Inner loops of frame_tokens; compiled once per instruction set (see ifdd/isa.h), so no standard library code here.
#include "frame_tokens.h"

#include <type_traits>

#include "ifdd/pooling.h"
#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Register tiles: as many accumulators as the set has registers for. The order of additions of one sum does not depend
// on them.
constexpr int kRows = kVectorBytes == 64 ? 3 : kVectorBytes == 32 ? 2 : 1;
constexpr int kProjected = kVectorBytes == 64 ? 8 : 2;
constexpr int kSpread = kVectorBytes == 64 ? 8 : kVectorBytes == 32 ? 2 : 1;
static_assert(kRows <= kTokenRows);

// The unit of the loops over channels.
constexpr int kPack = kPad;
template <class A>
using Pack = Lanes<A, kPack>;

template <class T>
IFDD_INLINE const T* frame_of(const Frames<T>& x, const TokenSizes& size, int64_t frame) {
  return x.data + frame / size.T * x.batch + frame % size.T * x.frame;
}

// projected[s * N + r] = <weight row s, row r> for `rows` rows and `columns` weight rows, over `width` channels;
// fetches what lies `ahead` elements further.
template <int rows, int columns, class A>
IFDD_INLINE void project_tile(const A* const* row, int64_t ahead, const A* __restrict__ weight, int64_t width,
                              int64_t N, A* __restrict__ projected) {
  Pack<A> sum[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < columns; ++s) sum[r][s] = Pack<A>{};
  }
  for (int64_t c = 0; c < width; c += kPack) {
    Pack<A> x[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      __builtin_prefetch(row[r] + c + ahead);
      x[r] = read_lanes<kPack>(row[r] + c);
    }
#pragma GCC unroll 8
    for (int s = 0; s < columns; ++s) {
      const Pack<A> w = read_lanes<kPack>(weight + s * width + c);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) multiply_add(sum[r][s], x[r], w);
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < columns; ++s) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) projected[s * N + r] = total(sum[r][s]);
  }
}

// projected (S, N) of `rows` rows (kRows or 1) of a frame. Not inlined: one copy for all types that widen to A.
template <class A>
__attribute__((noinline)) void project_rows(const A* const* row, int64_t ahead, int64_t rows, const TokenSizes& size,
                                            const A* weight, A* projected) {
  for (int64_t s = 0; s < size.S; s += kProjected) {
    const int64_t columns = size.S - s < kProjected ? size.S - s : kProjected;
    with_count<kProjected>(columns, [&](auto count) __attribute__((always_inline)) {
      constexpr int tile = decltype(count)::value;
      if (rows == kRows) {
        project_tile<kRows, tile>(row, ahead, weight + s * size.width, size.width, size.N, projected + s * size.N);
      } else {
        project_tile<1, tile>(row, ahead, weight + s * size.width, size.width, size.N, projected + s * size.N);
      }
    });
  }
}

// projected (S, N) of the frame at x; widened holds kTokenRows rows.
template <class T, class A>
IFDD_INLINE void project_frame(const T* x, int64_t stride, const TokenSizes& size, const A* weight, A* widened,
                               A* projected) {
  const int64_t width = size.width;
  for (int64_t n = 0; n < size.N;) {
    const int64_t rows = size.N - n >= kRows ? kRows : 1;
    const A* row[kRows];
    int64_t ahead = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const T* source = x + (n + r) * stride;
      if constexpr (std::is_same_v<T, A>) {
        row[r] = source;
        ahead = kRows * stride;
        if (width == size.C) continue;
      }
      A* copy = widened + r * width;
      widen(source, size.C, copy);
      for (int64_t c = size.C; c < width; ++c) copy[c] = 0;
      row[r] = copy;
      ahead = 0;
    }
    project_rows(row, ahead, rows, size, weight, projected + n);
    n += rows;
  }
}

IFDD_INLINE bool identity_pool(const TokenSizes& size) { return size.H == size.P && size.W == size.P; }

// before (S, P, P) = pool(projected) + bias.
template <class A>
IFDD_INLINE void pool_projected(const TokenSizes& size, const A* __restrict__ projected, const A* __restrict__ bias,
                                A* __restrict__ before) {
  const int64_t N = size.N, cells = size.cells();
  for (int64_t s = 0; s < size.S; ++s) {
    const A* __restrict__ q = projected + s * N;
    A* __restrict__ out = before + s * cells;
    const A offset = bias[s];
    if (identity_pool(size)) {
      for_each(N, [&](int64_t n) { out[n] = q[n] + offset; });
      continue;
    }
    for_each_window<A>(size.H, size.W, size.P,
                       [&](int64_t p, Window rows, Window columns, A share) __attribute__((always_inline)) {
                         A sum = 0;
                         for (int64_t y = rows.first; y < rows.last; ++y) {
                           for (int64_t c = columns.first; c < columns.last; ++c) sum += q[y * size.W + c];
                         }
                         out[p] = sum * share + offset;
                       });
  }
}

// spread (N, tile): the gradient of projected rows [first, first + tile), from the gradient of `before` (S, P, P).
template <class A>
IFDD_INLINE void spread_gradient(const TokenSizes& size, const A* __restrict__ grad, int64_t first, int64_t tile,
                                 A* __restrict__ spread) {
  const int64_t cells = size.cells();
  if (identity_pool(size)) {
    for (int64_t n = 0; n < size.N; ++n) {
      for (int64_t s = 0; s < tile; ++s) spread[n * tile + s] = grad[(first + s) * cells + n];
    }
    return;
  }
  for (int64_t i = 0; i < size.N * tile; ++i) spread[i] = 0;
  for_each_window<A>(size.H, size.W, size.P,
                     [&](int64_t p, Window rows, Window columns, A share) __attribute__((always_inline)) {
                       for (int64_t y = rows.first; y < rows.last; ++y) {
                         for (int64_t c = columns.first; c < columns.last; ++c) {
                           for (int64_t s = 0; s < tile; ++s) {
                             spread[(y * size.W + c) * tile + s] += share * grad[(first + s) * cells + p];
                           }
                         }
                       }
                     });
}

template <class T>
IFDD_INLINE Pack<acc_t<T>> load_channels(const T* p, int64_t count) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (count == kPack) return read_lanes<kPack>(p);
  }
  A lane[kPack] = {};
  if (count == kPack) {
    widen(p, kPack, lane);
  } else {
    for (int64_t j = 0; j < count; ++j) lane[j] = load(p + j);
  }
  return read_lanes<kPack>(lane);
}

template <class T>
IFDD_INLINE void store_channels(T* p, int64_t count, const Pack<acc_t<T>>& pack) {
  using A = acc_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (count == kPack) return write_lanes(p, pack);
  }
  A lane[kPack];
  write_lanes(lane, pack);
  if (count == kPack) {
    narrow(lane, kPack, p);
  } else {
    for (int64_t j = 0; j < count; ++j) store(p + j, lane[j]);
  }
}

// Channels that backward fetches ahead of itself, a few hundred bytes.
constexpr int64_t kAhead = 8 * kPack;

// `rows` rows of the frame, the channels of one pack, `tile` rows of the convolution: adds to the weight gradient and
// to the gradient of x, which lives in `held` (rows packs) between tiles: the first one starts it, from what is there
// where it is to `add`, the last one stores it.
template <int tile, class T, class A>
IFDD_INLINE void backward_tile(const TokenSizes& size, int64_t rows, const T* x, int64_t stride, int64_t count,
                               const A* weight, const A* __restrict__ spread, bool first, bool last, bool add,
                               A* __restrict__ held, A* __restrict__ weight_partial, T* __restrict__ grad_x) {
  Pack<A> w[tile], sum[tile];
#pragma GCC unroll 8
  for (int s = 0; s < tile; ++s) {
    w[s] = read_lanes<kPack>(weight + s * size.width);
    sum[s] = read_lanes<kPack>(weight_partial + s * size.width);
  }
  for (int64_t n = 0; n < rows; ++n) {
    if (first) {
      // Two rows' worth of streams in as many pages are more than the prefetcher of the processor follows.
      __builtin_prefetch(x + n * stride + kAhead);
      __builtin_prefetch(grad_x + n * size.C + kAhead, 1);
    }
    const Pack<A> row = load_channels(x + n * stride, count);
    Pack<A> grad = !first ? read_lanes<kPack>(held + n * kPack)
                   : add  ? load_channels(grad_x + n * size.C, count)
                          : Pack<A>{};
    const A* __restrict__ g = spread + n * tile;
#pragma GCC unroll 8
    for (int s = 0; s < tile; ++s) {
      multiply_add(sum[s], row, g[s]);
      multiply_add(grad, w[s], g[s]);
    }
    if (last) {
      store_channels(grad_x + n * size.C, count, grad);
    } else {
      write_lanes(held + n * kPack, grad);
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < tile; ++s) write_lanes(weight_partial + s * size.width, sum[s]);
}

}  // namespace

template <class T>
void frame_tokens(const TokenForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const TokenSizes& size = op.size;
  A* projected = scratch;
  A* widened = scratch + size.S * size.N;
  for (int64_t frame = begin; frame < end; ++frame) {
    project_frame(frame_of(op.x, size, frame), op.x.token, size, op.weight, widened, projected);
    A* __restrict__ tokens = op.tokens + frame * size.tokens();
    A* __restrict__ before = op.before == nullptr ? tokens : op.before + frame * size.tokens();
    pool_projected(size, projected, op.bias, before);
    for_vectors<A>(size.tokens(), [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      const Vec<A> v = lanes.read(before + i);
      lanes.write(tokens + i, v * normal(v).cdf);
    });
  }
}

template <class T>
void frame_tokens_backward(const TokenBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const TokenSizes& size = op.size;
  const int64_t N = size.N, S = size.S, width = size.width, cells = size.cells();
  A* projected = scratch;  // (S, N), then the spread gradient of it
  A* widened = projected + S * N;
  A* recomputed = widened + kTokenRows * width;
  A* grad = recomputed + size.tokens();  // of the activation's argument
  A* held = grad + size.tokens();
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    A* weight_partial = op.weight_partial + chunk * S * width;
    A* bias_partial = op.bias_partial + chunk * S;
    for_each(S * width, [&](int64_t i) { weight_partial[i] = 0; });
    for_each(S, [&](int64_t i) { bias_partial[i] = 0; });
    const int64_t first_frame = chunk * op.frames_per_chunk;
    const int64_t rest = op.frames - first_frame;
    const int64_t frames = rest < op.frames_per_chunk ? rest : op.frames_per_chunk;
    for (int64_t frame = first_frame; frame < first_frame + frames; ++frame) {
      const T* x = frame_of(op.x, size, frame);
      const A* __restrict__ before = recomputed;
      if (op.before == nullptr) {
        project_frame(x, op.x.token, size, op.weight, widened, projected);
        pool_projected(size, projected, op.bias, recomputed);
      } else {
        before = op.before + frame * size.tokens();
      }
      const A* __restrict__ grad_tokens = op.grad_tokens + frame * size.tokens();
      for_vectors<A>(size.tokens(), [&](int64_t i, auto lanes) __attribute__((always_inline)) {
        const Vec<A> v = lanes.read(before + i);
        const Normal<Vec<A>> at = normal(v);
        lanes.write(grad + i, lanes.read(grad_tokens + i) * (at.cdf + v * at.pdf));
      });
      for (int64_t s = 0; s < S; ++s) {
        LaneSum<A> sum;
        const A* __restrict__ row = grad + s * cells;
        for_lanes(cells, [&](int64_t j, int l) { sum.lane[l] += row[j]; });
        bias_partial[s] += total(sum);
      }
      for (int64_t s = 0; s < S; s += kSpread) {
        const int64_t tile = S - s < kSpread ? S - s : kSpread;
        spread_gradient(size, grad, s, tile, projected + s * N);
      }
      T* grad_x = op.grad_x + frame * N * size.C;
      for (int64_t n = 0; n < N; n += kTokenRowsBackward) {
        const int64_t rows = N - n < kTokenRowsBackward ? N - n : kTokenRowsBackward;
        for (int64_t c = 0; c < size.C; c += kPack) {
          const int64_t count = size.C - c < kPack ? size.C - c : kPack;
          for (int64_t s = 0; s < S; s += kSpread) {
            with_count<kSpread>(S - s < kSpread ? S - s : kSpread, [&](auto constant) __attribute__((always_inline)) {
              constexpr int tile = decltype(constant)::value;
              backward_tile<tile>(size, rows, x + n * op.x.token + c, op.x.token, count, op.weight + s * width + c,
                                  projected + s * N + n * tile, s == 0, s + tile == S, op.add, held,
                                  weight_partial + s * width + c, grad_x + n * size.C + c);
            });
          }
        }
      }
    }
  }
}

#define INSTANTIATE(T)                                                                \
  template void frame_tokens<T>(const TokenForward<T>&, int64_t, int64_t, acc_t<T>*); \
  template void frame_tokens_backward<T>(const TokenBackward<T>&, int64_t, int64_t, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
