// Inner loops of pool_tokens; compiled once per instruction set (see ifdd/isa.h), so no standard library code here.
//
// A tile is up to kTile neighbouring output columns. For one vector of channels the tile's sums stay in registers while
// the (at most nine) input rows of its windows pass by; windows are cut at the border, nothing is padded.
#include "pool_tokens.h"

#include <type_traits>

#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Input rows in the accumulation type: the caller's memory, or a copy of the band's.
template <class A>
struct Cells {
  const A* data;  // cell (t, y, x) of the grid: data + t * frame + (y - first) * row + x * column
  int64_t frame, row, column;
  int64_t first;
};

// The input rows that the windows of a tile cross: `source` at the centre tap of the tile's first column, `tap` the
// first of the row's three.
template <class A>
struct WindowRow {
  const A* source;
  int64_t tap;
};

template <class A>
struct Window {
  WindowRow<A> row[9];
  int rows = 0;
  int64_t column;    // elements between neighbouring input columns
  int64_t step;      // elements between the centre taps of neighbouring outputs
  bool left, right;  // whether the outermost taps of the first and last output lie inside the grid
};

// The values under the three taps of each of the tile's outputs. `unit`: stride 1 along x, where windows overlap.
template <bool unit, int N, class A>
struct Taps {
  Vec<A> value[unit ? N + 2 : 3 * N];
  __attribute__((always_inline)) Vec<A> at(int output, int tap) const {
    return value[unit ? output + tap : 3 * output + tap];
  }
};

template <bool unit, int N, class A>
IFDD_INLINE Taps<unit, N, A> read_taps(const Window<A>& window, const A* p) {
  static constexpr A zeros[kWidth<A>] = {};
  Taps<unit, N, A> taps;
  const int64_t column = window.column;
  if constexpr (unit) {
    taps.value[0] = read(window.left ? p - column : zeros);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) taps.value[1 + i] = read(p + i * column);
    taps.value[N + 1] = read(window.right ? p + N * column : zeros);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const A* centre = p + i * window.step;
      taps.value[3 * i] = read(i > 0 || window.left ? centre - column : zeros);
      taps.value[3 * i + 1] = read(centre);
      taps.value[3 * i + 2] = read(i + 1 < N || window.right ? centre + column : zeros);
    }
  }
  return taps;
}

// The convolution at the N outputs of a tile, `stride` apart in out. weight (27, pad).
template <bool unit, int N, class A>
__attribute__((noinline)) void convolve(const Window<A>& window, const A* weight, int64_t d, A* out, int64_t stride) {
  const int64_t pad = padded(d);
  for (int64_t c = 0; c < d; c += kWidth<A>) {
    Vec<A> sum[N] = {};
    for (int r = 0; r < window.rows; ++r) {
      const Taps<unit, N, A> taps = read_taps<unit, N>(window, window.row[r].source + c);
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        const Vec<A> factor = read(weight + (window.row[r].tap + k) * pad + c);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) sum[i] += taps.at(i, k) * factor;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) write(out + i * stride + c, sum[i]);
  }
}

// Adds to partial (27, pad) the products of the tile's inputs with grad_u (N, pad).
template <bool unit, int N, class A>
__attribute__((noinline)) void add_weight_gradient(const Window<A>& window, const A* grad_u, int64_t d, A* partial) {
  const int64_t pad = padded(d);
  for (int64_t c = 0; c < d; c += kWidth<A>) {
    Vec<A> g[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) g[i] = read(grad_u + i * pad + c);
    for (int r = 0; r < window.rows; ++r) {
      const Taps<unit, N, A> taps = read_taps<unit, N>(window, window.row[r].source + c);
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) {
        A* slot = partial + (window.row[r].tap + k) * pad + c;
        Vec<A> sum = read(slot);
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) sum += taps.at(i, k) * g[i];
        write(slot, sum);
      }
    }
  }
}

// The two for each size of tile and kind of stride.
template <class A>
struct Tile {
  int columns;
  void (*convolve)(const Window<A>&, const A* weight, int64_t d, A* out, int64_t stride);
  void (*add_weight_gradient)(const Window<A>&, const A* grad_u, int64_t d, A* partial);
};

template <bool unit, int N, class A>
constexpr Tile<A> kTileOf = {N, convolve<unit, N, A>, add_weight_gradient<unit, N, A>};

// Widest first. Seven makes whole tiles of 7, 14 and 28 columns.
template <class A>
constexpr Tile<A> kTiles[2][5] = {
    {kTileOf<false, 8, A>, kTileOf<false, 7, A>, kTileOf<false, 4, A>, kTileOf<false, 2, A>, kTileOf<false, 1, A>},
    {kTileOf<true, 8, A>, kTileOf<true, 7, A>, kTileOf<true, 4, A>, kTileOf<true, 2, A>, kTileOf<true, 1, A>}};

// Calls body(x, tile) for tiles that cover columns 0..columns-1.
template <class A, class Body>
IFDD_INLINE void for_tiles(int64_t columns, bool unit, const Body& body) {
  const Tile<A>* tile = kTiles<A>[unit];
  if (columns % 8 != 0 && columns % 7 == 0) ++tile;
  for (int64_t x = 0; x < columns; x += tile->columns) {
    while (tile->columns > columns - x) ++tile;
    body(x, *tile);
  }
}

// Where the kernels may read the caller's rows themselves.
template <class T>
constexpr const acc_t<T>* direct(const T* p) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return p;
  } else {
    return nullptr;
  }
}

template <class T, class A>
IFDD_INLINE void read_row(const T* row, int64_t d, A* out) {
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) { write(out + c, lanes.read(row + c)); });
}

template <class T, class A>
IFDD_INLINE void write_row(const A* row, int64_t d, T* out) {
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) { lanes.write(out + c, read(row + c)); });
}

// Input cells of the band of outputs with this y, for one head. Rows that whole vectors of the accumulation type do
// not read are copied to `stage` (T, 3, W, padded(d)): once a band instead of once a tap.
template <class T>
IFDD_INLINE Cells<acc_t<T>> band_cells(const PoolSizes& size, const TokenRows<const T>& x, int64_t b, int64_t head,
                                       int64_t y, acc_t<T>* stage) {
  const Grid& in = size.in;
  const T* base = x.data + b * x.clip + head * x.head + x.token;
  if (!staged<T>(size.d)) return {direct(base), in.y * in.x * x.token, in.x * x.token, x.token, 0};
  const int64_t pad = padded(size.d), first = y * size.stride.y - 1;
  for (int64_t t = 0; t < in.t; ++t) {
    for (int64_t row = 0; row < 3; ++row) {
      if (first + row < 0 || first + row >= in.y) continue;
      for (int64_t i = 0; i < in.x; ++i) {
        if ((i + 1) % size.stride.x > 2) continue;  // in no window
        read_row(base + ((t * in.y + first + row) * in.x + i) * x.token, size.d,
                 stage + ((t * 3 + row) * in.x + i) * pad);
      }
    }
  }
  return {stage, 3 * in.x * pad, in.x * pad, pad, first};
}

// The window of the outputs (t, y, x..x+columns-1).
template <class A>
IFDD_INLINE Window<A> forward_window(const PoolSizes& size, const Cells<A>& cells, int64_t t, int64_t y, int64_t x,
                                     int64_t columns) {
  Window<A> window;
  window.column = cells.column;
  window.step = size.stride.x * cells.column;
  window.left = x > 0;
  window.right = (x + columns - 1) * size.stride.x + 1 < size.in.x;
  for (int64_t kt = 0; kt < 3; ++kt) {
    const int64_t it = t * size.stride.t + kt - 1;
    if (it < 0 || it >= size.in.t) continue;
    for (int64_t ky = 0; ky < 3; ++ky) {
      const int64_t iy = y * size.stride.y + ky - 1;
      if (iy < 0 || iy >= size.in.y) continue;
      window.row[window.rows++] = {
          cells.data + it * cells.frame + (iy - cells.first) * cells.row + x * size.stride.x * cells.column,
          9 * kt + 3 * ky};
    }
  }
  return window;
}

// LayerNorm of one row u. Two passes for the statistics, since E[u^2] - E[u]^2 cancels.
template <class T, class A>
IFDD_INLINE void normalize(const PoolForward<T>& op, const A* u, T* out, A* stats) {
  const int64_t d = op.size.d;
  Vec<A> sum = {};
  for_vectors<A>(d, [&](int64_t c, auto) __attribute__((always_inline)) { sum += read(u + c); });
  const A mean = total(sum) / static_cast<A>(d);
  Vec<A> squares = {};
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Vec<A> deviation = lanes.keep(read(u + c) - mean);
    squares += deviation * deviation;
  });
  const A rstd = 1 / sqrt(total(squares) / static_cast<A>(d) + op.eps);
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    lanes.write(out + c, (read(u + c) - mean) * rstd * read(op.norm_weight + c) + read(op.norm_bias + c));
  });
  stats[0] = mean;
  stats[1] = rstd;
}

// Gradient of one normalised row with respect to u, into grad_u; adds to the gradients of the norm. Overwrites u.
template <class T, class A>
IFDD_INLINE void normalize_backward(const PoolBackward<T>& op, A* u, const T* grad, const A* stats, A* partial,
                                    A* grad_u) {
  const int64_t d = op.size.d, pad = padded(d);
  const A mean = stats[0], rstd = stats[1];
  A* grad_weight = partial + kTaps * pad;
  A* grad_bias = grad_weight + pad;
  Vec<A> sum = {}, dot = {};
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Vec<A> normalized = (read(u + c) - mean) * rstd;
    const Vec<A> g = lanes.read(grad + c);
    const Vec<A> scaled = g * read(op.norm_weight + c);
    sum += scaled;
    dot += scaled * normalized;
    write(grad_weight + c, read(grad_weight + c) + g * normalized);
    write(grad_bias + c, read(grad_bias + c) + g);
    write(u + c, normalized);
  });
  const A mean_sum = total(sum) / static_cast<A>(d);
  const A mean_dot = total(dot) / static_cast<A>(d);
  for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const Vec<A> scaled = lanes.read(grad + c) * read(op.norm_weight + c);
    write(grad_u + c, rstd * (scaled - mean_sum - read(u + c) * mean_dot));
  });
}

template <class T, class A>
IFDD_INLINE void forward_band(const PoolForward<T>& op, int64_t b, int64_t head, int64_t y, A* scratch) {
  const PoolSizes& size = op.size;
  const int64_t d = size.d, pad = padded(d), rows = 1 + size.out_cells();
  A* u = scratch;
  const Cells<A> cells = band_cells(size, op.x, b, head, y, scratch + kTile * pad);
  // Time innermost: of the three frames under a tile two are still in the first-level cache.
  for_tiles<A>(size.out.x, size.stride.x == 1, [&](int64_t x, const Tile<A>& tile) {
    for (int64_t t = 0; t < size.out.t; ++t) {
      tile.convolve(forward_window(size, cells, t, y, x, tile.columns), op.weight, d, u, pad);
      for (int i = 0; i < tile.columns; ++i) {
        const int64_t row = 1 + (t * size.out.y + y) * size.out.x + x + i;
        normalize(op, u + i * pad, op.out.data + b * op.out.clip + row * op.out.token + head * op.out.head,
                  op.stats + ((b * rows + row) * size.heads + head) * 2);
      }
    }
  });
}

template <class T, class A>
IFDD_INLINE void backward_band(const PoolBackward<T>& op, int64_t b, int64_t head, int64_t y, A* scratch, A* partial) {
  const PoolSizes& size = op.size;
  const int64_t d = size.d, pad = padded(d), rows = 1 + size.out_cells();
  A* u = scratch;
  const Cells<A> cells = band_cells(size, op.x, b, head, y, scratch + kTile * pad);
  for_tiles<A>(size.out.x, size.stride.x == 1, [&](int64_t x, const Tile<A>& tile) {
    for (int64_t t = 0; t < size.out.t; ++t) {
      const Window<A> window = forward_window(size, cells, t, y, x, tile.columns);
      tile.convolve(window, op.weight, d, u, pad);
      const int64_t first = (t * size.out.y + y) * size.out.x + x;
      A* grad_u = op.grad_u + ((b * size.heads + head) * size.out_cells() + first) * pad;
      for (int i = 0; i < tile.columns; ++i) {
        const int64_t row = 1 + first + i;
        normalize_backward(op, u + i * pad, op.grad.data + b * op.grad.clip + row * op.grad.token + head * op.grad.head,
                           op.stats + ((b * rows + row) * size.heads + head) * 2, partial, grad_u + i * pad);
      }
      tile.add_weight_gradient(window, grad_u, d, partial);
    }
  });
}

// Along one axis: the outputs whose windows cover input cell i, each with the tap that does.
struct Cover {
  int64_t output[3];
  int64_t tap[3];
  int count = 0;
};

IFDD_INLINE Cover covering(int64_t i, int64_t stride, int64_t outputs) {
  Cover cover;
  for (int64_t tap = 0; tap < 3; ++tap) {
    const int64_t scaled = i + 1 - tap;
    if (scaled < 0 || scaled % stride != 0 || scaled / stride >= outputs) continue;
    cover.output[cover.count] = scaled / stride;
    cover.tap[cover.count++] = tap;
  }
  return cover;
}

// With stride 1 along x the input's gradient is a convolution of grad_u with mirrored taps.
template <class T, class A>
IFDD_INLINE void input_gradient_band(const PoolBackward<T>& op, int64_t b, int64_t head, int64_t y, A* scratch) {
  const PoolSizes& size = op.size;
  const int64_t d = size.d, pad = padded(d);
  const A* base = op.grad_u + (b * size.heads + head) * size.out_cells() * pad;
  const Cover cover_y = covering(y, size.stride.y, size.out.y);
  for_tiles<A>(size.in.x, true, [&](int64_t x, const Tile<A>& tile) {
    for (int64_t t = 0; t < size.in.t; ++t) {
      const Cover cover_t = covering(t, size.stride.t, size.out.t);
      Window<A> window;
      window.column = window.step = pad;
      window.left = x > 0;
      window.right = x + tile.columns < size.in.x;
      for (int i = 0; i < cover_t.count; ++i) {
        for (int j = 0; j < cover_y.count; ++j) {
          const int64_t row = cover_t.output[i] * size.out.y + cover_y.output[j];
          window.row[window.rows++] = {base + (row * size.out.x + x) * pad, 9 * cover_t.tap[i] + 3 * cover_y.tap[j]};
        }
      }
      const int64_t token = 1 + (t * size.in.y + y) * size.in.x + x;
      T* out = op.grad_x.data + b * op.grad_x.clip + token * op.grad_x.token + head * op.grad_x.head;
      tile.convolve(window, op.weight_mirror, d, scratch, pad);
      for (int i = 0; i < tile.columns; ++i) write_row(scratch + i * pad, d, out + i * op.grad_x.token);
    }
  });
}

// Any stride along x: column by column, over the few outputs that see it.
template <class T>
IFDD_INLINE void input_gradient_columns(const PoolBackward<T>& op, int64_t b, int64_t head, int64_t y) {
  using A = acc_t<T>;
  const PoolSizes& size = op.size;
  const int64_t d = size.d, pad = padded(d);
  const A* base = op.grad_u + (b * size.heads + head) * size.out_cells() * pad;
  const Cover cover_y = covering(y, size.stride.y, size.out.y);
  for (int64_t x = 0; x < size.in.x; ++x) {
    const Cover cover_x = covering(x, size.stride.x, size.out.x);
    for (int64_t t = 0; t < size.in.t; ++t) {
      const Cover cover_t = covering(t, size.stride.t, size.out.t);
      struct {
        const A* grad_u;
        const A* weight;
      } term[kTaps];
      int terms = 0;
      for (int i = 0; i < cover_t.count; ++i) {
        for (int j = 0; j < cover_y.count; ++j) {
          for (int k = 0; k < cover_x.count; ++k) {
            const int64_t cell = (cover_t.output[i] * size.out.y + cover_y.output[j]) * size.out.x + cover_x.output[k];
            const int64_t tap = 9 * cover_t.tap[i] + 3 * cover_y.tap[j] + cover_x.tap[k];
            term[terms++] = {base + cell * pad, op.weight + tap * pad};
          }
        }
      }
      const int64_t token = 1 + (t * size.in.y + y) * size.in.x + x;
      T* out = op.grad_x.data + b * op.grad_x.clip + token * op.grad_x.token + head * op.grad_x.head;
      for_vectors<A>(d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        Vec<A> sum = {};
        for (int i = 0; i < terms; ++i) sum += read(term[i].grad_u + c) * read(term[i].weight + c);
        lanes.write(out + c, sum);
      });
    }
  }
}

}  // namespace

template <class T>
void pool_forward(const PoolForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  const PoolSizes& size = op.size;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t y = unit % size.out.y, head = unit / size.out.y % size.heads, b = unit / size.out.y / size.heads;
    if (y == 0) {
      const int64_t row = b * (1 + size.out_cells()) * size.heads + head;
      read_row(op.x.data + b * op.x.clip + head * op.x.head, size.d, scratch);
      normalize(op, scratch, op.out.data + b * op.out.clip + head * op.out.head, op.stats + row * 2);
    }
    forward_band(op, b, head, y, scratch);
  }
}

template <class T>
void pool_backward_norm(const PoolBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const PoolSizes& size = op.size;
  const int64_t sums = (kTaps + 2) * padded(size.d);
  for (int64_t band = begin; band < end; ++band) {
    const int64_t y = band % size.out.y, b = band / size.out.y;
    A* partial = op.partial + band * sums;
    for (int64_t i = 0; i < sums; ++i) partial[i] = 0;
    for (int64_t head = 0; head < size.heads; ++head) {
      if (y == 0) {
        const int64_t row = b * (1 + size.out_cells()) * size.heads + head;
        T* out = op.grad_x.data + b * op.grad_x.clip + head * op.grad_x.head;
        read_row(op.x.data + b * op.x.clip + head * op.x.head, size.d, scratch);
        A* grad_u = scratch + padded(size.d);
        normalize_backward(op, scratch, op.grad.data + b * op.grad.clip + head * op.grad.head, op.stats + row * 2,
                           partial, grad_u);
        write_row(grad_u, size.d, out);
      }
      backward_band(op, b, head, y, scratch, partial);
    }
  }
}

template <class T>
void pool_backward_input(const PoolBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  const PoolSizes& size = op.size;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t y = unit % size.in.y, head = unit / size.in.y % size.heads, b = unit / size.in.y / size.heads;
    if (size.stride.x == 1) {
      input_gradient_band(op, b, head, y, scratch);
    } else {
      input_gradient_columns(op, b, head, y);
    }
  }
}

#define INSTANTIATE(T)                                                                      \
  template void pool_forward<T>(const PoolForward<T>&, int64_t, int64_t, acc_t<T>*);        \
  template void pool_backward_norm<T>(const PoolBackward<T>&, int64_t, int64_t, acc_t<T>*); \
  template void pool_backward_input<T>(const PoolBackward<T>&, int64_t, int64_t, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
