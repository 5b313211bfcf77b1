// Inner loops of augment_clips; compiled once per instruction set (see ifdd/isa.h), so no standard library code here.
//
// A row of the result is made of rows of the crop, first down its columns, whose bytes lie as they are added, then
// along the row. The colour steps follow while it is in the first-level cache. Contrast needs the mean of the whole
// frame: up to it the rows are kept.
#include "augment_clips.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Taps that are summed in registers.
constexpr int kTaps = 4;

template <class A>
struct Pixels {
  Vec<A> red, green, blue;
};

template <class V>
IFDD_INLINE V clamped(V v) {
  using A = LaneOf<V>;
  const V zero{}, one = zero + A(1);
  v = v > one ? one : v;
  return v < zero ? zero : v;
}

template <class V>
IFDD_INLINE V magnitude(V v) {
  return v < V{} ? -v : v;
}

template <class A>
IFDD_INLINE Vec<A> luma(const Pixels<A>& p) {
  return A(0.299) * p.red + A(0.587) * p.green + A(0.114) * p.blue;
}

// Mixes every channel with `other`, and clamps.
template <class A>
IFDD_INLINE void blend(Pixels<A>& p, A factor, Vec<A> other) {
  const Vec<A> rest = (1 - factor) * other;
  p.red = clamped(factor * p.red + rest);
  p.green = clamped(factor * p.green + rest);
  p.blue = clamped(factor * p.blue + rest);
}

// Turns the hue. With the hue h in sixths of the circle a channel is value - chroma * (1 - share(h)): the share of red
// is that of a trapezium around 0, of green around 2, of blue around 4.
template <class A>
IFDD_INLINE void turn_hue(Pixels<A>& p, A sixths) {
  using V = Vec<A>;
  const V red = p.red, green = p.green, blue = p.blue;
  V value = red > green ? red : green, least = red > green ? green : red;
  value = value > blue ? value : blue;
  least = least > blue ? blue : least;
  const V chroma = value - least, zero{};
  const V divisor = chroma == zero ? zero + A(1) : chroma;
  const V opposite = value == red ? green - blue : value == green ? blue - red : red - green;
  const V base = value == red ? zero : value == green ? zero + A(2) : zero + A(4);
  V h = base + opposite / divisor + sixths;
  h = h < zero ? h + A(6) : h;
  h = h >= A(6) ? h - A(6) : h;
  p.red = value - chroma * (A(1) - clamped(magnitude(h - A(3)) - A(1)));
  p.green = value - chroma * (A(1) - clamped(A(2) - magnitude(h - A(2))));
  p.blue = value - chroma * (A(1) - clamped(A(2) - magnitude(h - A(4))));
}

template <class T, class A>
IFDD_INLINE void take_steps(const AugmentedFrame<T>& op, int begin, int end, A mean, Pixels<A>& p) {
  for (int i = begin; i < end; ++i) {
    const A strength = op.strengths[op.steps[i]];
    switch (op.steps[i]) {
      case kBrightness:
        blend(p, strength, Vec<A>{});
        break;
      case kContrast:
        blend(p, strength, broadcast(mean));
        break;
      case kSaturation:
        blend(p, strength, luma(p));
        break;
      default:
        turn_hue(p, strength);
    }
  }
}

// row[j] of the crop's width in bytes: `count` taps, added to what is there or not.
template <int count, bool add, class A>
IFDD_INLINE void sum_rows(const uint8_t* first, int64_t row_bytes, const A* weight, int64_t bytes,
                          A* __restrict__ row) {
  const uint8_t* source[count];
  A w[count];
  for (int k = 0; k < count; ++k) {
    source[k] = first + k * row_bytes;
    w[k] = weight[k];
  }
  for_each(bytes, [&](int64_t j) __attribute__((always_inline)) {
    A sum = add ? row[j] : A(0);
#pragma GCC unroll 4
    for (int k = 0; k < count; ++k) sum += w[k] * static_cast<A>(static_cast<int>(source[k][j]));
    row[j] = sum;
  });
}

template <class T, class A>
IFDD_INLINE void resize_down(const AugmentedFrame<T>& op, int64_t y, A* row) {
  const A* weight = op.rows.weight + y * op.rows.taps;
  const uint8_t* source = op.crop + op.rows.first[y] * op.row_bytes;
  for (int64_t k = 0; k < op.rows.taps; k += kTaps) {
    const int64_t count = op.rows.taps - k < kTaps ? op.rows.taps - k : kTaps;
    with_count<kTaps>(count, [&](auto taps) __attribute__((always_inline)) {
      constexpr int n = decltype(taps)::value;
      if (k == 0) {
        sum_rows<n, false>(source, op.row_bytes, weight, 3 * op.width, row);
      } else {
        sum_rows<n, true>(source + k * op.row_bytes, op.row_bytes, weight + k, 3 * op.width, row);
      }
    });
  }
}

// A pixel is read as four lanes, of which the last belongs to its neighbour; four pixels are turned into three planes.
template <int known, class A>
IFDD_INLINE void resize_along(const AxisWeights<A>& columns, const A* row, int64_t stride, A* planes) {
  using Quad = typename VectorOf<A, 4>::type;
  const int64_t taps = known ? known : columns.taps;
  for (int64_t x = 0; x < stride; x += 4) {
    Quad pixel[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const A* source = row + 3 * columns.first[x + i];
      const A* weight = columns.weight + (x + i) * taps;
      Quad sum{};
#pragma GCC unroll 4
      for (int64_t k = 0; k < taps; ++k) {
        Quad read;
        __builtin_memcpy(&read, source + 3 * k, sizeof read);
        sum += weight[k] * read;
      }
      pixel[i] = sum;
    }
    transpose(pixel);
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c) __builtin_memcpy(planes + c * stride + x, &pixel[c], sizeof(Quad));
  }
}

template <class T, class A>
IFDD_INLINE void resize_row(const AugmentedFrame<T>& op, int64_t y, int64_t stride, A* planes) {
  resize_down(op, y, op.row);
  switch (op.columns.taps) {
    case 1:
      return resize_along<1>(op.columns, op.row, stride, planes);
    case 2:
      return resize_along<2>(op.columns, op.row, stride, planes);
    case 3:
      return resize_along<3>(op.columns, op.row, stride, planes);
    case 4:
      return resize_along<4>(op.columns, op.row, stride, planes);
    default:
      return resize_along<0>(op.columns, op.row, stride, planes);
  }
}

template <class A>
IFDD_INLINE Pixels<A> read_pixels(const A* planes, int64_t stride, int64_t x) {
  return {read(planes + x), read(planes + stride + x), read(planes + 2 * stride + x)};
}

// The steps from `begin` on, and the row of the result.
template <class T, class A>
IFDD_INLINE void finish_row(const AugmentedFrame<T>& op, int64_t y, int begin, A mean, const A* planes,
                            int64_t stride) {
  T* out = op.out + y * op.size;
  for_vectors<A>(op.size, [&](int64_t x, auto lanes) __attribute__((always_inline)) {
    Pixels<A> p = read_pixels(planes, stride, x);
    take_steps(op, begin, op.step_count, mean, p);
    lanes.write(out + x, clamped(p.red));
    lanes.write(out + op.channel + x, clamped(p.green));
    lanes.write(out + 2 * op.channel + x, clamped(p.blue));
  });
}

}  // namespace

template <class T>
void augment_frame(const AugmentedFrame<T>& op) {
  using A = acc_t<T>;
  const int64_t stride = padded(op.size);
  int contrast = 0;
  while (contrast < op.step_count && op.steps[contrast] != kContrast) ++contrast;
  if (contrast == op.step_count) {
    for (int64_t y = 0; y < op.size; ++y) {
      resize_row(op, y, stride, op.planes);
      finish_row(op, y, 0, A(0), op.planes, stride);
    }
    return;
  }
  double sum = 0;
  for (int64_t y = 0; y < op.size; ++y) {
    A* planes = op.planes + y * 3 * stride;
    resize_row(op, y, stride, planes);
    Vec<A> row_sum{};
    for_vectors<A>(op.size, [&](int64_t x, auto lanes) __attribute__((always_inline)) {
      Pixels<A> p = read_pixels(planes, stride, x);
      take_steps(op, 0, contrast, A(0), p);
      write(planes + x, p.red);
      write(planes + stride + x, p.green);
      write(planes + 2 * stride + x, p.blue);
      row_sum += lanes.keep(luma(p));
    });
    sum += static_cast<double>(total(row_sum));
  }
  const A mean = static_cast<A>(sum / (static_cast<double>(op.size) * static_cast<double>(op.size)));
  for (int64_t y = 0; y < op.size; ++y) finish_row(op, y, contrast, mean, op.planes + y * 3 * stride, stride);
}

#define INSTANTIATE(T) template void augment_frame<T>(const AugmentedFrame<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
