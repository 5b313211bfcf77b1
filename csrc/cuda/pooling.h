// Depthwise 3x3x3 pooling of tokens on CUDA: sizes, the ring of frames in shared memory, and the sums over its cells.
//
// Along an axis with stride s >= 3 the windows {so - 1, so, so + 1} leave gaps that nothing reads. The kernels leave
// them out when they stage a tile, after which every axis has a step of 1, 2 or 3 between its windows.
#pragma once

#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/vector.h"

namespace ifdd::cuda {

constexpr int kTaps = 27;
constexpr int kParts = 3;           // q, k, v
constexpr int kMostChannels = 128;  // of a head: more would not fit into the registers of backward
constexpr int kMostRows = 4;        // of a tile, one group of threads each
constexpr int kMostThreads = 192;   // four rows of 96 channels; wider heads get fewer rows

struct Axis {
  int in, out, stride, step;  // step = min(stride, 3)

  // The input cell at place i of the compacted axis, counted from the first window of output `first`; it may lie
  // outside.
  IFDD_DEVICE int cell(int first, int i) const {
    return step < 3 ? first * step - 1 + i : (first + i / 3) * stride - 1 + i % 3;
  }
};

// Outputs a thread forms side by side. More share more of their cells, but hold more registers.
template <int Step>
constexpr int kStrip = Step == 1   ? 8
                       : Step == 2 ? 4
                                   : 2;
template <int Step>
constexpr int kColumns = (kStrip<Step> - 1) * Step + 3;

// q, k or v.
template <class T>
struct Part {
  const T* x;  // token 0 of clip 0, head 0
  int64_t stride_b, stride_n;
  Axis t, y, across;
  const float* weight;       // (d, 27)
  const float* norm_weight;  // (d)
  int tiles_y, tiles_x;
  int items;  // B * heads * tiles
  bool wide;  // 16-byte copies

  __host__ __device__ int64_t cells_in() const { return static_cast<int64_t>(t.in) * y.in * across.in; }
  __host__ __device__ int64_t cells_out() const { return static_cast<int64_t>(t.out) * y.out * across.out; }
};

// What all parts share.
struct PoolShape {
  int heads, d, pairs, rows;  // pairs of channels; rows of a tile

  __host__ __device__ int result_pitch() const { return 2 * pairs; }
  template <class T>
  __host__ __device__ int cell_pitch() const {
    return (d + kVector<T> - 1) / kVector<T> * kVector<T>;
  }
};

// A tile of outputs of one clip and head, over all frames.
struct Tile {
  int64_t b;
  int head, y, x;  // first output row and column
  bool first;      // of its clip and head: takes the class token

  template <int Step, class T>
  static IFDD_DEVICE Tile at(const Part<T>& part, const PoolShape& shape, int item) {
    const int tiles = part.tiles_y * part.tiles_x, tile = item % tiles, of = item / tiles;
    return {of / shape.heads, of % shape.heads, tile / part.tiles_x * shape.rows, tile % part.tiles_x * kStrip<Step>,
            tile == 0};
  }
};

// Calls body(std::integral_constant<int, step>{}).
template <class Body>
IFDD_DEVICE void with_step(int step, const Body& body) {
  if (step == 1) {
    body(std::integral_constant<int, 1>{});
  } else if (step == 2) {
    body(std::integral_constant<int, 2>{});
  } else {
    body(std::integral_constant<int, 3>{});
  }
}

// This thread's place: a pair of channels, and the group of threads that takes a row of a tile.
struct Place {
  int pair, group;

  static IFDD_DEVICE Place of(const PoolShape& shape) {
    return {static_cast<int>(threadIdx.x) % shape.pairs, static_cast<int>(threadIdx.x) / shape.pairs};
  }
};

// Three frames of a tile's cells in shared memory, d channels each; frame f of the compacted time axis lies in slot f
// % 3.
template <class T, int Step>
class Ring {
 public:
  IFDD_DEVICE Ring(T* memory, const Part<T>& part, const PoolShape& shape)
      : memory_(memory), part_(part), shape_(shape), pitch_(shape.template cell_pitch<T>()) {
    cells_ = ((shape.rows - 1) * part.y.step + 3) * kColumns<Step>;
  }

  // Starts the copies of the cells of compacted frame f; cells outside the grid become zeros.
  IFDD_DEVICE void stage(const Tile& tile, int f) const {
    const int t = part_.t.cell(0, f);
    const bool frame_inside = t >= 0 && t < part_.t.in;
    const int per_access = part_.wide ? kVector<T> : 1;
    const int pieces = shape_.d / per_access, threads = static_cast<int>(blockDim.x);
    const int across = pieces < threads ? pieces : threads, teams = threads / across;
    const int team = static_cast<int>(threadIdx.x) / across;
    if (team >= teams) return;
    const T* clip = part_.x + tile.b * part_.stride_b + tile.head * shape_.d;
    for (int cell = team; cell < cells_; cell += teams) {
      const int y = part_.y.cell(tile.y, cell / kColumns<Step>), x = part_.across.cell(tile.x, cell % kColumns<Step>);
      const bool inside = frame_inside && y >= 0 && y < part_.y.in && x >= 0 && x < part_.across.in;
      const int64_t token = inside ? 1 + (static_cast<int64_t>(t) * part_.y.in + y) * part_.across.in + x : 0;
      const T* from = clip + token * part_.stride_n;
      T* to = memory_ + (f % 3 * cells_ + cell) * pitch_;
      for (int piece = static_cast<int>(threadIdx.x) % across; piece < pieces; piece += across) {
        if (part_.wide) {
          copy_async<16>(to + piece * kVector<T>, from + piece * kVector<T>, inside);
        } else {
          to[piece] = inside ? from[piece] : narrow<T>(0);
        }
      }
    }
  }

  // Calls body(tap row (0..8), column, the two channels) for every cell under the strip of outputs in tile row `group`
  // at output frame o.
  template <class Body>
  IFDD_DEVICE void each_cell(const Place& place, int o, const Body& body) const {
#pragma unroll
    for (int dt = 0; dt < 3; ++dt) {
      const T* frame = memory_ + (o * part_.t.step + dt) % 3 * cells_ * pitch_ + 2 * place.pair;
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        const T* row = frame + (place.group * part_.y.step + dy) * kColumns<Step> * pitch_;
#pragma unroll
        for (int column = 0; column < kColumns<Step>; ++column) {
          float value[2];
          load(row + column * pitch_, value);
          body(dt * 3 + dy, column, value);
        }
      }
    }
  }

 private:
  T* memory_;
  const Part<T>& part_;
  const PoolShape& shape_;
  int pitch_, cells_;
};

// Elements of the ring, for any step along the width.
template <class T>
int64_t ring_size(const Part<T>& part, const PoolShape& shape) {
  const int columns = part.across.step == 1 ? kColumns<1> : part.across.step == 2 ? kColumns<2> : kColumns<3>;
  return int64_t{3} * ((shape.rows - 1) * part.y.step + 3) * columns * shape.template cell_pitch<T>();
}

// The strip of outputs a thread forms: sums over taps of weight(tap) times cell.
template <class T, int Step, class Weight>
IFDD_DEVICE void convolve(const Ring<T, Step>& ring, const Place& place, int o, const Weight& weight,
                          float (&sum)[kStrip<Step>][2]) {
#pragma unroll
  for (int j = 0; j < kStrip<Step>; ++j) sum[j][0] = sum[j][1] = 0;
  ring.each_cell(place, o, [&](int tap_row, int column, const float (&value)[2]) {
#pragma unroll
    for (int j = 0; j < kStrip<Step>; ++j) {
      const int tap = column - j * Step;
      if (tap < 0 || tap > 2) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[j][i] += weight(tap_row * 3 + tap, i) * value[i];
    }
  });
}

// A row of d channels held by a warp, a pair of neighbours per lane and turn.
struct WarpChannels {
  static constexpr int kTurns = kMostChannels / (2 * kWarp);
  float value[kTurns][2];

  // Calls body(c, value) for this lane's channels.
  template <class Body>
  IFDD_DEVICE void each(int d, const Body& body) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = (turn * kWarp + lane_index()) * 2 + i;
        if (c < d) body(c, value[turn][i]);
      }
    }
  }
  IFDD_DEVICE float sum(int d) {
    float total = 0;
    each(d, [&](int, float& v) { total += v; });
    return warp_sum(total);
  }
  // Reads a row of T; pairs in one access where every row begins at an even element.
  template <class T>
  IFDD_DEVICE void read(const T* row, int d, bool in_pairs) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int c = (turn * kWarp + lane_index()) * 2;
      if (c + 1 < d && in_pairs) {
        load(row + c, value[turn]);
      } else {
        if (c < d) value[turn][0] = widen(row[c]);
        if (c + 1 < d) value[turn][1] = widen(row[c + 1]);
      }
    }
  }
  // Writes a row of T in global memory, in the same way.
  template <class T>
  IFDD_DEVICE void write(T* row, int d, bool in_pairs) const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int c = (turn * kWarp + lane_index()) * 2;
      if (c + 1 < d && in_pairs) {
        store(row + c, value[turn]);
      } else {
        if (c < d) row[c] = narrow<T>(value[turn][0]);
        if (c + 1 < d) row[c + 1] = narrow<T>(value[turn][1]);
      }
    }
  }
  // Writes a row in shared memory, which begins at an even element.
  IFDD_DEVICE void write_shared(float* row, int d) const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int c = (turn * kWarp + lane_index()) * 2;
      if (c + 1 < d) {
        store_shared(row + c, value[turn]);
      } else if (c < d) {
        row[c] = value[turn][0];
      }
    }
  }
};

}  // namespace ifdd::cuda
