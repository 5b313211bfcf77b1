// Inner loops of split_index and frame_correlation; compiled once per instruction set, no standard library code here.
#include "split_index.h"

#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Of a few hundred products, in double: for float nothing is lost but the last rounding.
template <class T>
IFDD_INLINE double dot(const T* __restrict__ a, const T* __restrict__ b, int64_t count) {
  LaneSum<double> sum;
  for_lanes(count, [&](int64_t j, int l) {
    sum.lane[l] += static_cast<double>(load(a + j)) * static_cast<double>(load(b + j));
  });
  return total(sum);
}

// Softmax of the rows of sign * correlation (T, T).
template <class A>
IFDD_INLINE void softmax_rows(const A* __restrict__ correlation, A sign, int64_t T, A* __restrict__ out) {
  for (int64_t t = 0; t < T; ++t) {
    const A* __restrict__ in = correlation + t * T;
    A* __restrict__ row = out + t * T;
    A top = sign * in[0];
    for (int64_t u = 1; u < T; ++u) top = sign * in[u] > top ? sign * in[u] : top;
    for_vectors<A>(T, [&](int64_t u, auto lanes) __attribute__((always_inline)) {
      lanes.write(row + u, exp(sign * lanes.read(in + u) - top));
    });
    LaneSum<A> sum;
    for_lanes(T, [&](int64_t u, int l) { sum.lane[l] += row[u]; });
    const A scale = 1 / total(sum);
    for_each(T, [&](int64_t u) { row[u] *= scale; });
  }
}

// Rows that are multiplied with one row together: enough independent sums to hide the latency of an addition.
constexpr int kRows = 4;

}  // namespace

template <class T>
void correlate(const T* z, int64_t frames, int64_t D, double scale, int64_t begin, int64_t end, double* scratch,
               acc_t<T>* out) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t b = r / frames, t = r % frames;
    if (r == begin || t == 0) {
      const T* __restrict__ rest = z + r * D;
      double* __restrict__ wide = scratch + t * D;
      for_each((frames - t) * D, [&](int64_t j) { wide[j] = static_cast<double>(load(rest + j)); });
    }
    acc_t<T>* clip = out + b * frames * frames;
    const double* row = scratch + t * D;
    for (int64_t u = t; u < frames; u += kRows) {
      with_count<kRows>(frames - u < kRows ? frames - u : kRows, [&](auto count) __attribute__((always_inline)) {
        constexpr int tile = decltype(count)::value;
        const double* other = scratch + u * D;
        Vec<double> sum[tile] = {};
        for_vectors<double>(D, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
          const Vec<double> x = lanes.read(row + j);
          unrolled<tile>([&](auto i) __attribute__((always_inline)) { sum[i] += x * lanes.read(other + i * D + j); });
        });
        unrolled<tile>([&](auto i) __attribute__((always_inline)) {
          const acc_t<T> value = static_cast<acc_t<T>>(total(sum[i]) * scale);
          clip[t * frames + u + i] = value;
          clip[(u + i) * frames + t] = value;
        });
      });
    }
  }
}

template <class T>
void correlate_backward(const acc_t<T>* grad, const T* z, int64_t frames, int64_t D, acc_t<T> scale, int64_t begin,
                        int64_t end, acc_t<T>* __restrict__ scratch, T* grad_z) {
  using A = acc_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t b = r / frames, t = r % frames;
    const A* g = grad + b * frames * frames;
    for_each(D, [&](int64_t j) { scratch[j] = 0; });
    for (int64_t u = 0; u < frames; ++u) {
      const A factor = g[t * frames + u] + g[u * frames + t];
      const T* __restrict__ row = z + (b * frames + u) * D;
      for_each(D, [&](int64_t j) { scratch[j] += factor * load(row + j); });
    }
    T* __restrict__ out = grad_z + r * D;
    for_each(D, [&](int64_t j) { store(out + j, scratch[j] * scale); });
  }
}

template <class A>
void offsets(const OffsetsForward<A>& op, int64_t begin, int64_t end, A* scratch) {
  const int64_t T = op.in.T, pairs = T * T, K = T / 2;
  for (int64_t b = begin; b < end; ++b) {
    for (int group = 0; group < 2; ++group) {
      softmax_rows(op.in.correlation + b * pairs, group == 0 ? A(1) : A(-1), T, scratch);
      for (int64_t k = 0; k < K; ++k) {
        const double offset = tanh(dot(op.in.weight[group] + k * pairs, scratch, pairs));
        op.index[group][b * K + k] = static_cast<A>(static_cast<double>(2 * k + group) + op.in.reach * offset);
      }
    }
  }
}

template <class A>
void offsets_backward(const OffsetsBackward<A>& op, int64_t begin, int64_t end) {
  const int64_t T = op.in.T, pairs = T * T, K = T / 2;
  for (int64_t b = begin; b < end; ++b) {
    A* __restrict__ out = op.total + b * pairs;
    const A* __restrict__ direct = op.grad_correlation + b * pairs;
    for_each(pairs, [&](int64_t i) { out[i] = direct[i]; });
    for (int group = 0; group < 2; ++group) {
      const A sign = group == 0 ? A(1) : A(-1);
      const A* weight = op.in.weight[group];
      A* __restrict__ attention = op.attention[group] + b * pairs;
      A* __restrict__ inner = op.inner[group] + b * K;
      softmax_rows(op.in.correlation + b * pairs, sign, T, attention);
      for (int64_t k = 0; k < K; ++k) {
        const double offset = tanh(dot(weight + k * pairs, attention, pairs));
        inner[k] = static_cast<A>(op.in.reach * op.grad_index[group][b * K + k] * (1 - offset * offset));
      }
      for (int64_t t = 0; t < T; ++t) {
        // Through the softmax of row t: a (g - <g, a>), g = W^T inner. The row of g is formed twice, T / 2 products an
        // element, instead of kept.
        const A* __restrict__ a = attention + t * T;
        LaneSum<A> sum;
        for (int64_t k = 0; k < K; ++k) {
          const A* __restrict__ w = weight + k * pairs + t * T;
          const A factor = inner[k];
          for_lanes(T, [&](int64_t u, int l) { sum.lane[l] += factor * w[u] * a[u]; });
        }
        const A mean = total(sum);
        A* __restrict__ row = out + t * T;
        for (int64_t k = 0; k < K; ++k) {
          const A* __restrict__ w = weight + k * pairs + t * T;
          const A factor = sign * inner[k];
          for_each(T, [&](int64_t u) { row[u] += factor * w[u] * a[u]; });
        }
        for_each(T, [&](int64_t u) { row[u] -= sign * mean * a[u]; });
      }
    }
  }
}

template <class A>
void offsets_weight_gradient(const A* inner, const A* __restrict__ attention, int64_t clips, int64_t K, int64_t pairs,
                             int64_t begin, int64_t end, A* __restrict__ out) {
  for (int64_t i = begin; i < end;) {
    const int64_t k = i / pairs, j = i % pairs;
    const int64_t count = pairs - j < end - i ? pairs - j : end - i;
    A* __restrict__ row = out + i;
    for_each(count, [&](int64_t c) { row[c] = 0; });
    for (int64_t b = 0; b < clips; ++b) {
      const A factor = inner[b * K + k];
      const A* __restrict__ a = attention + b * pairs + j;
      for_each(count, [&](int64_t c) { row[c] += factor * a[c]; });
    }
    i += count;
  }
}

#define INSTANTIATE(T)                                                                                         \
  template void correlate<T>(const T*, int64_t, int64_t, double, int64_t, int64_t, double*, acc_t<T>*);        \
  template void correlate_backward<T>(const acc_t<T>*, const T*, int64_t, int64_t, acc_t<T>, int64_t, int64_t, \
                                      acc_t<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

#define INSTANTIATE(A)                                                            \
  template void offsets<A>(const OffsetsForward<A>&, int64_t, int64_t, A*);       \
  template void offsets_backward<A>(const OffsetsBackward<A>&, int64_t, int64_t); \
  template void offsets_weight_gradient<A>(const A*, const A*, int64_t, int64_t, int64_t, int64_t, int64_t, A*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
