// Frames (B, T, N, C) on the device, and their rows of channels as warps and threads take them.
#pragma once

#include <algorithm>
#include <limits>

#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/vector.h"

namespace ifdd::cuda {

// Frames whose channels are dense; the other axes have any strides.
template <class T>
struct Frames {
  const T* data;
  int64_t stride_b, stride_t, stride_n;

  IFDD_DEVICE const T* row(int64_t b, int64_t t, int64_t n) const {
    return data + b * stride_b + t * stride_t + n * stride_n;
  }
};

template <class T>
Frames<T> frames_of(const Tensor& x) {
  return {data<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

// Whether every row of the frames can be read in vectors of N.
template <int N, class T>
bool rows_fit(const Frames<T>& x, int64_t channels) {
  return vector_fits<N>(x.data, x.stride_b, x.stride_t, x.stride_n, channels);
}

// N floats at p, in the widest accesses that fit into their number.
template <int N>
IFDD_DEVICE void load_floats(const float* p, float (&out)[N]) {
  constexpr int kWide = N % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    const Vector<float, kWide> part = load_vector<kWide>(p + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) out[i + j] = part.element[j];
  }
}

template <int N>
IFDD_DEVICE void store_floats(float* p, const float (&in)[N]) {
  constexpr int kWide = N % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < N; i += kWide) {
    Vector<float, kWide> part;
#pragma unroll
    for (int j = 0; j < kWide; ++j) part.element[j] = in[i + j];
    store_vector<kWide>(p + i, part);
  }
}

// A float parameter that kernels read in vectors of N.
template <int N>
bool floats_fit(const float* p) {
  return vector_fits<(N % 4 == 0 ? 4 : 1)>(p);
}

// Calls f(std::integral_constant<int, N>{}) with the elements of T per access: 16 bytes or one element.
template <class T, class F>
auto dispatch_vector(bool fits, const F& f) {
  return fits ? f(std::integral_constant<int, kVector<T>>{}) : f(std::integral_constant<int, 1>{});
}

// A row of C channels spread over a warp in vectors of N. What fits stays in registers between the passes over it; the
// rest is formed anew on each.
template <int N>
class WarpRow {
 public:
  // form(c, out) gives channels c .. c + N - 1.
  template <class Form>
  IFDD_DEVICE void keep(int64_t channels, const Form& form) {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (channel(i) < channels) form(channel(i), kept_[i]);
    }
  }

  // Calls body(c, values) for this lane's vectors.
  template <class Form, class Body>
  IFDD_DEVICE void each(int64_t channels, const Form& form, const Body& body) const {
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (channel(i) < channels) body(channel(i), kept_[i]);
    }
    for (int64_t c = channel(kKept); c < channels; c += N * kWarp) {
      float values[N];
      form(c, values);
      body(c, values);
    }
  }

 private:
  static constexpr int kKept = N == 1 ? 8 : 32 / N;  // 1024 channels in vectors, 256 without
  static IFDD_DEVICE int64_t channel(int i) { return (static_cast<int64_t>(i) * kWarp + lane_index()) * N; }

  float kept_[kKept][N];
};

template <int Half>
IFDD_DEVICE void sum_halves(float (&value)[kWarp]) {
  const bool upper = (lane_index() & Half) != 0;
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float kept = upper ? value[i + Half] : value[i];
    const float sent = upper ? value[i] : value[i + Half];
    value[i] = kept + __shfl_xor_sync(kAllLanes, sent, Half);
  }
  if constexpr (Half > 1) sum_halves<Half / 2>(value);
}

// Sums of 32 values over a warp; lane l gets that of value l. 31 exchanges instead of 160.
IFDD_DEVICE float warp_sum_scatter(float (&value)[kWarp]) {
  sum_halves<kWarp / 2>(value);
  return value[0];
}

// A contiguous range of work for each of a limited number of blocks. Depends on the sizes only, never on the device, so
// the order of every sum and with it the bits of the result are the same everywhere.
struct Chunks {
  int64_t count, length;
};

inline Chunks chunks_of(int64_t work, int64_t most) {
  if (work == 0) return {0, 1};
  const int64_t length = (work + most - 1) / most;
  return {(work + length - 1) / length, length};
}

}  // namespace ifdd::cuda
