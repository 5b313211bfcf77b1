// Inner loops of pooled_attention and lifting_attention; compiled once per instruction set (see ifdd/isa.h), so no
// standard library code here.
#include "attention.h"

#include <type_traits>
#include <utility>

#include "ifdd/simd.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// One register tile of a product is kRows x kWide vectors: 24 of the 32 registers of AVX-512, 12 of 16 elsewhere,
// enough independent sums to hide the latency of a multiply-add. 3 vectors divide a head dimension of 96 on every set.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 8;
#elif defined(__AVX__)
constexpr int kBytes = 32, kRows = 4;
#else
constexpr int kBytes = 16, kRows = 4;
#endif
constexpr int kWide = 3;
// Keys (or queries) summed in registers before a tile is added to memory: their rows of the other factor stay in the
// first-level cache, and a long sum is rounded in pieces.
constexpr int64_t kDepth = 128;

template <class A>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef int32_t Bits __attribute__((vector_size(kBytes)));
  typedef float Loose __attribute__((vector_size(kBytes), aligned(4), may_alias));
  static constexpr int lanes = kBytes / 4;
  // exp: 1.5 * 2^23 rounds what is added to it to an integer; ln 2 in two parts, the first short enough for exact
  // products with an exponent; below `lowest` the result would be subnormal, above `highest` it is infinite.
  static constexpr float round = 12582912.0f, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float lowest = -87.3365448f, highest = 89.0f;
  static constexpr int terms = 7, mantissa = 23, exponent_bias = 127;
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef int64_t Bits __attribute__((vector_size(kBytes)));
  typedef double Loose __attribute__((vector_size(kBytes), aligned(8), may_alias));
  static constexpr int lanes = kBytes / 8;
  static constexpr double round = 6755399441055744.0, log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double lowest = -708.39641853226408, highest = 710.0;
  static constexpr int terms = 13, mantissa = 52, exponent_bias = 1023;
};
template <class A>
using Vector = typename Simd<A>::Vector;
template <class A>
constexpr int kLane = Simd<A>::lanes;
template <class A>
constexpr int kColumns = kWide * kLane<A>;

template <class A>
IFDD_INLINE Vector<A> get(const A* p) {
  return *reinterpret_cast<const typename Simd<A>::Loose*>(p);
}
template <class A>
IFDD_INLINE void put(A* p, Vector<A> v) {
  *reinterpret_cast<typename Simd<A>::Loose*>(p) = v;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define IFDD_SHUFFLE 1
#endif
#endif

template <class A, int bytes>
struct Lanes {
  typedef A type __attribute__((vector_size(bytes)));
};

// Lanes [first, first + count) of a vector. Through shuffles where the compiler has them: an address would pin the
// vector to memory.
template <class A, int bytes, int first, int... lane>
IFDD_INLINE typename Lanes<A, bytes / 2>::type half_of(typename Lanes<A, bytes>::type v,
                                                       std::integer_sequence<int, lane...>) {
#if defined(IFDD_SHUFFLE)
  return __builtin_shufflevector(v, v, (first + lane)...);
#else
  typename Lanes<A, bytes / 2>::type half;
  __builtin_memcpy(&half, reinterpret_cast<const A*>(&v) + first, bytes / 2);
  return half;
#endif
}

// Reduces a vector by halves; combine(x, y) works on vectors.
template <class A, int bytes = kBytes, class Combine>
IFDD_INLINE A reduce(typename Lanes<A, bytes>::type v, const Combine& combine) {
  constexpr int half = bytes / sizeof(A) / 2;
  if constexpr (half == 1) {
    return combine(v[0], v[1]);
  } else {
    const auto lanes = std::make_integer_sequence<int, half>();
    return reduce<A, bytes / 2>(combine(half_of<A, bytes, 0>(v, lanes), half_of<A, bytes, half>(v, lanes)), combine);
  }
}
template <class A>
IFDD_INLINE A add_lanes(Vector<A> v) {
  return reduce<A>(v, [](auto x, auto y) __attribute__((always_inline)) { return x + y; });
}
template <class A>
IFDD_INLINE A largest_lane(Vector<A> v) {
  return reduce<A>(v, [](auto x, auto y) __attribute__((always_inline)) { return x > y ? x : y; });
}

// The first `count` lanes, zeros in the others.
template <class A>
IFDD_INLINE Vector<A> head_lanes(Vector<A> v, int64_t count) {
  using Bits = typename Simd<A>::Bits;
  Bits lane;
#pragma GCC unroll 16
  for (int l = 0; l < kLane<A>; ++l) lane[l] = l;
  using Index = std::remove_reference_t<decltype(lane[0])>;
  return lane < static_cast<Index>(count < kLane<A> ? count : kLane<A>) ? v : Vector<A>{};
}

#if defined(IFDD_SHUFFLE)
// Swaps the lanes of a that have bit `step` set with the lanes of b that have not.
template <class A, int step, int... lane>
IFDD_INLINE void exchange(Vector<A>& a, Vector<A>& b, std::integer_sequence<int, lane...>) {
  constexpr int L = kLane<A>;
  const Vector<A> low = __builtin_shufflevector(a, b, (lane & step ? L + lane - step : lane)...);
  b = __builtin_shufflevector(a, b, (lane & step ? L + lane : lane + step)...);
  a = low;
}

template <class A, int step = 1>
IFDD_INLINE void transpose(Vector<A> (&row)[kLane<A>]) {
  if constexpr (step < kLane<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLane<A>; ++i) {
      if ((i & step) == 0) exchange<A, step>(row[i], row[i + step], std::make_integer_sequence<int, kLane<A>>());
    }
    transpose<A, 2 * step>(row);
  }
}
#else
template <class A>
IFDD_INLINE void transpose(Vector<A> (&row)[kLane<A>]) {
  for (int i = 0; i < kLane<A>; ++i) {
    for (int l = 0; l < i; ++l) {
      const A swap = row[i][l];
      row[i][l] = row[l][i];
      row[l][i] = swap;
    }
  }
}
#endif

template <class A>
IFDD_INLINE A negative_infinity() {
  return -static_cast<A>(__builtin_inf());
}

// e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a Taylor sum in r whose first omitted term is below a tenth of a rounding, and
// 2^n put together from its bits. Within 1.5 roundings; 0 for -inf and where the result would be subnormal; NaN stays.
template <class A>
IFDD_INLINE Vector<A> exponential(Vector<A> x) {
  using S = Simd<A>;
  using Bits = typename S::Bits;
  const Vector<A> high = Vector<A>{} + S::highest, low = Vector<A>{} + S::lowest;
  const Vector<A> bounded = x > high ? high : x < low ? low : x;
  const Vector<A> shifted = bounded * S::log2e + S::round;
  const Vector<A> n = shifted - S::round;
  const Vector<A> r = (bounded - n * S::ln2_high) - n * S::ln2_low;
  A coefficient[S::terms + 1];
  coefficient[0] = 1;
#pragma GCC unroll 16
  for (int i = 1; i <= S::terms; ++i) coefficient[i] = coefficient[i - 1] / static_cast<A>(i);
  Vector<A> sum = Vector<A>{} + coefficient[S::terms];
#pragma GCC unroll 16
  for (int i = S::terms - 1; i >= 0; --i) sum = sum * r + coefficient[i];
  const Bits integer = reinterpret_cast<Bits>(shifted) - reinterpret_cast<Bits>(Vector<A>{} + S::round);
  const Vector<A> power = reinterpret_cast<Vector<A>>((integer + S::exponent_bias) << S::mantissa);
  return x < low ? Vector<A>{} : sum * power;
}

template <class A>
IFDD_INLINE A logarithm(A v) {
  if constexpr (sizeof(A) == 8) {
    return __builtin_log(v);
  } else {
    return __builtin_logf(v);
  }
}

// A tile of kRows x (wide vectors): c = alpha a b (+ c). Element (i, k) of a is a[i * stride + k], or a[k * stride + i]
// of a transposed factor; rows of b are `b_stride` apart.
template <class A, int wide, bool transposed, bool add>
IFDD_INLINE void tile(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth, A alpha, A* c,
                      int64_t c_stride) {
  Vector<A> sum[kRows][wide];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) sum[i][v] = Vector<A>{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector<A> row[wide];
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) row[v] = get(b + k * b_stride + v * kLane<A>);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const A factor = transposed ? a[k * a_stride + i] : a[i * a_stride + k];
#pragma GCC unroll 3
      for (int v = 0; v < wide; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < wide; ++v) {
      A* p = c + i * c_stride + v * kLane<A>;
      put(p, add ? Vector<A>(get(p) + alpha * sum[i][v]) : Vector<A>(alpha * sum[i][v]));
    }
  }
}

template <class A, bool transposed, bool add>
IFDD_INLINE void tile(int64_t vectors, const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth,
                      A alpha, A* c, int64_t c_stride) {
  static_assert(kWide == 3);
  if (vectors >= 3) {
    tile<A, 3, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  } else if (vectors == 2) {
    tile<A, 2, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  } else {
    tile<A, 1, transposed, add>(a, a_stride, b, b_stride, depth, alpha, c, c_stride);
  }
}

// c (m, n) = alpha a (m, depth) b (depth, n) (+ c), with m and n rounded up to tiles. Panels of kColumns columns of b
// are panel_stride apart.
template <class A, bool add>
__attribute__((noinline)) void multiply(int64_t m, int64_t n, int64_t depth, A alpha, const A* a, int64_t a_stride,
                                        const A* b, int64_t b_stride, int64_t panel_stride, A* c, int64_t c_stride) {
  for (int64_t j = 0; j < n; j += kColumns<A>, b += panel_stride) {
    const int64_t vectors = (n - j + kLane<A> - 1) / kLane<A>;
    for (int64_t i = 0; i < m; i += kRows) {
      tile<A, false, add>(vectors, a + i * a_stride, a_stride, b, b_stride, depth, alpha, c + i * c_stride + j,
                          c_stride);
    }
  }
}

// c (m, n) += alpha a^T b, a (depth, m), b (depth, n).
template <class A>
__attribute__((noinline)) void add_transposed(int64_t m, int64_t n, int64_t depth, A alpha, const A* a,
                                              int64_t a_stride, const A* b, int64_t b_stride, A* c, int64_t c_stride) {
  for (int64_t i = 0; i < m; i += kRows) {
    for (int64_t j = 0; j < n; j += kColumns<A>) {
      const int64_t vectors = (n - j + kLane<A> - 1) / kLane<A>;
      tile<A, true, true>(vectors, a + i, a_stride, b + j, b_stride, depth, alpha, c + i * c_stride + j, c_stride);
    }
  }
}

// Head dimension, its storage, and the tokens of one (batch, head).
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};
template <class T>
IFDD_INLINE Rows<T> rows_of(const Tokens<T>& tokens, int64_t b, int64_t head) {
  return {tokens.data + b * tokens.batch + head * tokens.head, tokens.token};
}

// Rows [first, first + count) in the accumulation type, ends of rows and the rows up to `total` filled with zeros.
template <class T, class A>
IFDD_INLINE void copy_rows(const Rows<T>& rows, int64_t first, int64_t count, int64_t total, int64_t d, A* out) {
  const int64_t width = padded(d);
  for (int64_t i = 0; i < count; ++i) {
    const T* in = rows.data + (first + i) * rows.stride;
    A* row = out + i * width;
    // Rows lie apart, so the hardware does not foresee the next ones.
    if (i + 4 < count) {
      for (int64_t c = 0; c < d; c += 64 / sizeof(T)) __builtin_prefetch(in + 4 * rows.stride + c);
    }
    for_each(d, [&](int64_t c) { row[c] = load(in + c); });
    for (int64_t c = d; c < width; ++c) row[c] = 0;
  }
  for (int64_t c = count * width; c < total * width; ++c) out[c] = 0;
}

// Panels of kColumns rows, transposed: element (row, c) at (row / kColumns, c, row % kColumns); zeros behind the rows.
template <class T, class A>
IFDD_INLINE void copy_panels(const Rows<T>& rows, int64_t count, int64_t d, A* out) {
  constexpr int L = kLane<A>;
  for (int64_t first = 0; first < round_up(count, kColumns<A>); first += L) {
    A* panel = out + first / kColumns<A> * kColumns<A> * d + first % kColumns<A>;
    for (int64_t c = 0; c < d; c += L) {
      const int64_t columns = d - c < L ? d - c : L;
      Vector<A> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        A row[L] = {};
        if (first + i < count) {
          const T* in = rows.data + (first + i) * rows.stride + c;
          if (columns == L) {
#pragma omp simd
            for (int l = 0; l < L; ++l) row[l] = load(in + l);
          } else {
            for (int64_t l = 0; l < columns; ++l) row[l] = load(in + l);
          }
        }
        block[i] = get(row);
      }
      transpose<A>(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) {
        if (l < columns) put(panel + (c + l) * kColumns<A>, block[l]);
      }
    }
  }
}

// Memory of the bias of one query: its products with the rows of each axis, and the sums over height and width.
template <class A>
struct Bias {
  A *axis[3], *plane;
};

// Carves arrays from the scratch memory of a thread.
template <class A>
struct Arena {
  A* next;
  A* take(int64_t count) {
    A* begin = next;
    next += padded(count);
    return begin;
  }
  Bias<A> take_bias(const int64_t (&k)[3]) {
    Bias<A> bias;
    for (int axis = 0; axis < 3; ++axis) bias.axis[axis] = take(k[axis] + kPad);
    bias.plane = take(k[1] * k[2] + kPad);
    return bias;
  }
};

// For a query that is not the class token, the part of each axis' row offsets that all keys share.
template <class A>
IFDD_INLINE void offsets_of(const Position<A>& position, int64_t query, int64_t (&offset)[3]) {
  const int64_t H = position.q_grid[1], W = position.q_grid[2], body = query - 1;
  const int64_t coordinate[3] = {body / (H * W), body / W % H, body % W};
  for (int axis = 0; axis < 3; ++axis) offset[axis] = position.query_part[axis][coordinate[axis]];
}

// Products of one query with four rows.
template <class A>
IFDD_INLINE void four_products(const A* q, const A* const (&row)[4], int64_t d, A* out) {
  Vector<A> sum[4] = {};
  for (int64_t c = 0; c < d; c += kLane<A>) {
    const Vector<A> v = get(q + c);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) sum[r] += v * get(row[r] + c);
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) out[r] = add_lanes<A>(sum[r]);
}

// The bias of one query for all keys, into a row of scores. Vectors run over the ends of lines and planes: what they
// write there is overwritten by the next one, and the end of the row is padding.
template <class A>
IFDD_INLINE void fill_bias(const Position<A>& position, int64_t query, const A* q, int64_t d, int64_t keys,
                           const Bias<A>& bias, A* out) {
  constexpr int L = kLane<A>;
  if (query == 0) {
    for (int64_t j = 0; j < keys; j += L) put(out + j, Vector<A>{});
    return;
  }
  int64_t offset[3];
  offsets_of(position, query, offset);
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t count = position.k_grid[axis], *const key = position.key_part[axis];
    const A* const first = position.rows + offset[axis];
    for (int64_t k = 0; k < count; k += 4) {
      const A* row[4];
      for (int r = 0; r < 4; ++r) row[r] = first + key[k + r < count ? k + r : count - 1];
      four_products(q, row, d, bias.axis[axis] + k);
    }
  }
  const int64_t T = position.k_grid[0], H = position.k_grid[1], W = position.k_grid[2];
  for (int64_t y = 0; y < H; ++y) {
    for (int64_t x = 0; x < W; x += L) put(bias.plane + y * W + x, get(bias.axis[2] + x) + bias.axis[1][y]);
  }
  out[0] = 0;
  for (int64_t t = 0; t < T; ++t) {
    A* slab = out + 1 + t * H * W;
    for (int64_t p = 0; p < H * W; p += L) put(slab + p, get(bias.plane + p) + bias.axis[0][t]);
  }
}

// From the gradient of one query's scores: adds the bias' part of the query's gradient, and the tables' gradients.
template <class A>
IFDD_INLINE void bias_backward(const Position<A>& position, int64_t query, const A* q, const A* grad, int64_t d,
                               const Bias<A>& bias, A* grad_q, A* grad_rows) {
  const int64_t T = position.k_grid[0], H = position.k_grid[1], W = position.k_grid[2];
  constexpr int L = kLane<A>;
  A* plane = bias.plane;
  // Vectors run over the end of the plane, into its padding.
  for (int64_t p = 0; p < H * W; p += L) put(plane + p, Vector<A>{});
  for (int64_t t = 0; t < T; ++t) {
    const A* slab = grad + 1 + t * H * W;
    Vector<A> sum{};
    for (int64_t p = 0; p < H * W; p += L) {
      const Vector<A> v = head_lanes<A>(get(slab + p), H * W - p);
      put(plane + p, get(plane + p) + v);
      sum += v;
    }
    bias.axis[0][t] = add_lanes<A>(sum);
  }
  for (int64_t x = 0; x < W; x += L) put(bias.axis[2] + x, Vector<A>{});
  for (int64_t y = 0; y < H; ++y) {
    Vector<A> sum{};
    for (int64_t x = 0; x < W; x += L) {
      const Vector<A> v = head_lanes<A>(get(plane + y * W + x), W - x);
      put(bias.axis[2] + x, get(bias.axis[2] + x) + v);
      sum += v;
    }
    bias.axis[1][y] = add_lanes<A>(sum);
  }
  int64_t offset[3];
  offsets_of(position, query, offset);
  for (int64_t c = 0; c < d; c += L) {
    const Vector<A> body = get(q + c);
    Vector<A> sum = get(grad_q + c);
    for (int axis = 0; axis < 3; ++axis) {
      for (int64_t k = 0; k < position.k_grid[axis]; ++k) {
        const A factor = bias.axis[axis][k];
        const int64_t row = offset[axis] + position.key_part[axis][k] + c;
        sum += factor * get(position.rows + row);
        put(grad_rows + row, get(grad_rows + row) + factor * body);
      }
    }
    put(grad_q + c, sum);
  }
}

// Turns a row of scores into exponentials of their distance to the largest; returns the log-sum-exp and 1 / sum.
template <class A>
IFDD_INLINE void softmax_row(int64_t keys, A* score, A& log_sum, A& inverse) {
  constexpr int L = kLane<A>;
  const int64_t width = round_up(keys, L);
  for (int64_t j = keys; j < width; ++j) score[j] = negative_infinity<A>();
  Vector<A> high[4];
  for (int r = 0; r < 4; ++r) high[r] = Vector<A>{} + negative_infinity<A>();
  int64_t j = 0;
  for (; j + 4 * L <= width; j += 4 * L) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Vector<A> s = get(score + j + r * L);
      high[r] = s > high[r] ? s : high[r];
    }
  }
  for (; j < width; j += L) {
    const Vector<A> s = get(score + j);
    high[0] = s > high[0] ? s : high[0];
  }
  for (int r = 1; r < 4; ++r) high[0] = high[r] > high[0] ? high[r] : high[0];
  const A largest = largest_lane<A>(high[0]);

  Vector<A> sum{};
  for (j = 0; j < width; j += L) {
    const Vector<A> e = exponential<A>(get(score + j) - largest);
    put(score + j, e);
    sum += e;
  }
  const A all = add_lanes<A>(sum);
  log_sum = largest + logarithm(all);
  inverse = 1 / all;
}

// Probabilities in place of a row of scores, and the gradient of the scores in place of that of the probabilities. The
// rounding of log_sum, which grows with the scores, would be the whole row's: the row is normalised once more.
template <class A>
IFDD_INLINE void softmax_row_backward(int64_t keys, A log_sum, A* score, A* grad) {
  constexpr int L = kLane<A>;
  const int64_t width = round_up(keys, L);
  for (int64_t j = keys; j < width; ++j) score[j] = negative_infinity<A>();
  Vector<A> sum{}, total{};
  for (int64_t j = 0; j < width; j += L) {
    const Vector<A> p = exponential<A>(get(score + j) - log_sum);
    put(score + j, p);
    sum += p * get(grad + j);
    total += p;
  }
  const A inverse = 1 / add_lanes<A>(total), delta = inverse * add_lanes<A>(sum);
  for (int64_t j = 0; j < width; j += L) {
    const Vector<A> p = get(score + j) * inverse;
    put(score + j, p);
    put(grad + j, p * (get(grad + j) - delta));
  }
}

// Gradients of one key and one value from their sums.
template <class T>
IFDD_INLINE void store_key_value(const AttentionBackward<T>& op, int64_t b, int64_t head, int64_t j,
                                 const acc_t<T>* grad_k, const acc_t<T>* grad_v) {
  const AttentionSizes& s = op.size;
  const int64_t place = ((b * s.Nk + j) * s.h + head) * s.d;
  for_each(s.d, [&](int64_t c) { store(op.grad_k + place + c, grad_k[c]); });
  if (op.residual == Residual::value) {
    const Rows<T> grad = rows_of(op.grad, b, head);
    const T* row = grad.data + j * grad.stride;
    for_each(s.d, [&](int64_t c) { store(op.grad_v + place + c, grad_v[c] + load(row + c)); });
  } else {
    for_each(s.d, [&](int64_t c) { store(op.grad_v + place + c, grad_v[c]); });
  }
}

}  // namespace

template <class T>
void attention_forward(const AttentionForward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), stride = score_stride(s), m = forward_rows(s), blocks = forward_blocks(s);
  const bool with_bias = op.position.rows != nullptr;
  Arena<A> arena{scratch};
  A* keys = arena.take(round_up(s.Nk, kPanel) * s.d);
  A* values = arena.take(padded(s.Nk) * width);
  A* query = arena.take(m * width);
  A* score = arena.take(m * stride);
  A* sum = arena.take(m * width);
  const Bias<A> bias = arena.take_bias(op.position.k_grid);

  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / blocks, b = pair / s.h, head = pair % s.h;
    const Rows<T> q = rows_of(op.q, b, head), v = rows_of(op.v, b, head);
    if (packed != pair) {
      copy_panels(rows_of(op.k, b, head), s.Nk, s.d, keys);
      copy_rows(v, 0, s.Nk, s.Nk, s.d, values);
      packed = pair;
    }
    const int64_t first = unit % blocks * m, count = s.Nq - first < m ? s.Nq - first : m;
    const int64_t rows = round_up(count, kRows);
    copy_rows(q, first, count, rows, s.d, query);
    if (with_bias) {
      for (int64_t i = 0; i < count; ++i) {
        fill_bias(op.position, first + i, query + i * width, s.d, s.Nk, bias, score + i * stride);
      }
      multiply<A, true>(rows, s.Nk, s.d, op.scale, query, width, keys, kColumns<A>, kColumns<A> * s.d, score, stride);
    } else {
      multiply<A, false>(rows, s.Nk, s.d, op.scale, query, width, keys, kColumns<A>, kColumns<A> * s.d, score, stride);
    }
    A inverse[kForwardRows];
    for (int64_t i = 0; i < count; ++i) {
      softmax_row(s.Nk, score + i * stride, op.log_sum[pair * s.Nq + first + i], inverse[i]);
    }
    for (int64_t j = 0; j < s.Nk; j += kDepth) {
      const int64_t depth = s.Nk - j < kDepth ? s.Nk - j : kDepth;
      const auto product = j == 0 ? &multiply<A, false> : &multiply<A, true>;
      product(rows, s.d, depth, A(1), score + j, stride, values + j * width, width, kColumns<A>, sum, width);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t token = first + i;
      T* out = op.out + ((b * s.Nq + token) * s.h + head) * s.d;
      const A* row = sum + i * width;
      const A factor = inverse[i];
      if (op.residual == Residual::value) {
        const A* more = values + token * width;
        for_each(s.d, [&](int64_t c) { store(out + c, row[c] * factor + more[c]); });
      } else if (token > 0) {
        const A* more = query + i * width;
        for_each(s.d, [&](int64_t c) { store(out + c, row[c] * factor + more[c]); });
      } else {
        for_each(s.d, [&](int64_t c) { store(out + c, row[c] * factor); });
      }
    }
  }
}

template <class T>
void attention_backward(const AttentionBackward<T>& op, int64_t begin, int64_t end, acc_t<T>* scratch) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), stride = score_stride(s), m = backward_rows(s), parts = chunks(s);
  const int64_t panel = kColumns<A> * s.d;
  const bool with_bias = op.position.rows != nullptr;
  Arena<A> arena{scratch};
  A* keys = arena.take(round_up(s.Nk, kPanel) * s.d);
  A* values = arena.take(round_up(s.Nk, kPanel) * s.d);
  A* key_rows = arena.take(padded(s.Nk) * width);
  A* own_k = arena.take(padded(s.Nk) * width);
  A* own_v = arena.take(padded(s.Nk) * width);
  A* query = arena.take(m * width);
  A* grad = arena.take(m * width);
  A* grad_query = arena.take(m * width);
  A* score = arena.take(m * stride);
  A* grad_score = arena.take(m * stride);
  const Bias<A> bias = arena.take_bias(op.position.k_grid);

  int64_t packed = -1;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t pair = unit / parts, b = pair / s.h, head = pair % s.h;
    const Rows<T> q = rows_of(op.q, b, head), g = rows_of(op.grad, b, head);
    if (packed != pair) {
      const Rows<T> k = rows_of(op.k, b, head);
      copy_panels(k, s.Nk, s.d, keys);
      copy_panels(rows_of(op.v, b, head), s.Nk, s.d, values);
      copy_rows(k, 0, s.Nk, s.Nk, s.d, key_rows);
      packed = pair;
    }
    const int64_t sums = padded(s.Nk) * width;
    A* grad_k = op.partial == nullptr ? own_k : op.partial + unit * 2 * sums;
    A* grad_v = op.partial == nullptr ? own_v : grad_k + sums;
    for (int64_t c = 0; c < sums; ++c) grad_k[c] = grad_v[c] = 0;
    A* grad_rows = nullptr;
    if (with_bias) {
      const int64_t elements = op.position.row_count * width;
      grad_rows = op.table_partial + unit * elements;
      for (int64_t c = 0; c < elements; ++c) grad_rows[c] = 0;
    }
    const int64_t last = (unit % parts + 1) * chunk_rows(s) < s.Nq ? (unit % parts + 1) * chunk_rows(s) : s.Nq;
    for (int64_t first = unit % parts * chunk_rows(s); first < last; first += m) {
      const int64_t count = last - first < m ? last - first : m, rows = round_up(count, kRows);
      copy_rows(q, first, count, rows, s.d, query);
      copy_rows(g, first, count, rows, s.d, grad);
      if (with_bias) {
        for (int64_t i = 0; i < count; ++i) {
          fill_bias(op.position, first + i, query + i * width, s.d, s.Nk, bias, score + i * stride);
        }
        multiply<A, true>(rows, s.Nk, s.d, op.scale, query, width, keys, kColumns<A>, panel, score, stride);
      } else {
        multiply<A, false>(rows, s.Nk, s.d, op.scale, query, width, keys, kColumns<A>, panel, score, stride);
      }
      multiply<A, false>(rows, s.Nk, s.d, A(1), grad, width, values, kColumns<A>, panel, grad_score, stride);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t token = first + i;
        A* grad_row = grad_score + i * stride;
        softmax_row_backward(s.Nk, op.log_sum[pair * s.Nq + token], score + i * stride, grad_row);
        const bool pass_on = op.residual == Residual::query && token > 0;
        A* out = grad_query + i * width;
        for_each(width, [&](int64_t c) { out[c] = pass_on ? grad[i * width + c] : A(0); });
        if (with_bias && token > 0) {
          bias_backward(op.position, token, query + i * width, grad_row, s.d, bias, out, grad_rows);
        }
      }
      add_transposed(s.Nk, s.d, count, A(1), score, stride, grad, width, grad_v, width);
      add_transposed(s.Nk, s.d, count, op.scale, grad_score, stride, query, width, grad_k, width);
      for (int64_t j = 0; j < s.Nk; j += kDepth) {
        const int64_t depth = s.Nk - j < kDepth ? s.Nk - j : kDepth;
        multiply<A, true>(rows, s.d, depth, op.scale, grad_score + j, stride, key_rows + j * width, width, kColumns<A>,
                          grad_query, width);
      }
      for (int64_t i = 0; i < count; ++i) {
        T* out = op.grad_q + ((b * s.Nq + first + i) * s.h + head) * s.d;
        for_each(s.d, [&](int64_t c) { store(out + c, grad_query[i * width + c]); });
      }
    }
    if (op.partial == nullptr) {
      for (int64_t j = 0; j < s.Nk; ++j) store_key_value(op, b, head, j, grad_k + j * width, grad_v + j * width);
    }
  }
}

template <class T>
void sum_chunks(const AttentionBackward<T>& op, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const AttentionSizes& s = op.size;
  const int64_t width = padded(s.d), sums = padded(s.Nk) * width, parts = chunks(s);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t pair = row / s.Nk, j = row % s.Nk;
    // The first chunk's row takes up the others.
    A* grad_k = op.partial + pair * parts * 2 * sums + j * width;
    A* grad_v = grad_k + sums;
    for (int64_t part = 1; part < parts; ++part) {
      const A* more_k = grad_k + part * 2 * sums;
      const A* more_v = grad_v + part * 2 * sums;
      for_each(s.d, [&](int64_t c) {
        grad_k[c] += more_k[c];
        grad_v[c] += more_v[c];
      });
    }
    store_key_value(op, pair / s.h, pair % s.h, j, grad_k, grad_v);
  }
}

#define INSTANTIATE(T)                                                                           \
  template void attention_forward<T>(const AttentionForward<T>&, int64_t, int64_t, acc_t<T>*);   \
  template void attention_backward<T>(const AttentionBackward<T>&, int64_t, int64_t, acc_t<T>*); \
  template void sum_chunks<T>(const AttentionBackward<T>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
