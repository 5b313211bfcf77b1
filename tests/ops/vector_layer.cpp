// What tests/ops/test_vector_layer.py calls: the vector layer and the small products, for one instruction set or width.
#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"
#include "small_products.h"

namespace layer = ifdd::cpu::IFDD_ISA;
using ifdd::acc_t;

namespace {

using namespace layer;

template <class A, class Function>
void apply(const A* x, int64_t count, A* out, const Function& function) {
  for_vectors<A>(count, [&](int64_t j, auto lanes) { lanes.write(out + j, function(lanes.read(x + j))); });
}

template <class T>
void partial_rows(const T* in, int64_t count, T* out) {
  const Partial lanes{static_cast<int>(count)};
  lanes.write(out, lanes.read(in));
}

template <class A>
void product(int kind, int64_t m, int64_t n, int64_t depth, A alpha, const A* a, int64_t a_stride, const A* b,
             int64_t b_stride, A* panels, A* c, int64_t c_stride) {
  constexpr int64_t columns = kTileColumns<A>;
  switch (kind) {
    case 0:
      return multiply<A, false>(m, n, depth, alpha, a, a_stride, b, b_stride, columns, c, c_stride);
    case 1:
      return multiply<A, true>(m, n, depth, alpha, a, a_stride, b, b_stride, columns, c, c_stride);
    case 2:
      pack_panels(b, b_stride, n, depth, panels);
      return multiply<A, false>(m, n, depth, alpha, a, a_stride, panels, columns, columns * depth, c, c_stride);
    default:
      return add_transposed(m, n, depth, alpha, a, a_stride, b, b_stride, c, c_stride);
  }
}

}  // namespace

extern "C" {

int vector_bytes() { return kVectorBytes; }

#define FUNCTIONS(A, name)                                                                                  \
  void exp_##name(const A* x, int64_t count, A* out) {                                                      \
    apply(x, count, out, [](auto v) { return layer::exp(v); });                                             \
  }                                                                                                         \
  void cdf_##name(const A* x, int64_t count, A* out) {                                                      \
    apply(x, count, out, [](auto v) { return normal(v).cdf; });                                             \
  }                                                                                                         \
  void pdf_##name(const A* x, int64_t count, A* out) {                                                      \
    apply(x, count, out, [](auto v) { return normal(v).pdf; });                                             \
  }                                                                                                         \
  void sqrt_##name(const A* x, int64_t count, A* out) {                                                     \
    for (int64_t j = 0; j < count; ++j) out[j] = layer::sqrt(x[j]);                                         \
  }                                                                                                         \
  void log_##name(const A* x, int64_t count, A* out) {                                                      \
    for (int64_t j = 0; j < count; ++j) out[j] = layer::log(x[j]);                                          \
  }                                                                                                         \
  void total_##name(const A* x, int64_t, A* out) { *out = total(read(x)); }                                 \
  void largest_##name(const A* x, int64_t, A* out) { *out = largest(read(x)); }                             \
  void total16_##name(const A* x, int64_t, A* out) { *out = total(read_lanes<16>(x)); }                     \
  void total64_##name(const A* x, int64_t, A* out) {                                                        \
    LaneSum<A> sum;                                                                                         \
    for_lanes(kLanes, [&](int64_t j, int l) { sum.lane[l] += x[j]; });                                      \
    *out = total(sum);                                                                                      \
  }                                                                                                         \
  void first_lanes_##name(const A* x, int64_t count, A* out) { write(out, first_lanes(read(x), count)); }   \
  void transpose_##name(const A* x, int64_t, A* out) {                                                      \
    constexpr int width = kWidth<A>;                                                                        \
    Vec<A> row[width];                                                                                      \
    for (int i = 0; i < width; ++i) row[i] = read(x + i * width);                                           \
    transpose(row);                                                                                         \
    for (int i = 0; i < width; ++i) write(out + i * width, row[i]);                                         \
  }                                                                                                         \
  void product_##name(int kind, int64_t m, int64_t n, int64_t depth, A alpha, const A* a, int64_t a_stride, \
                      const A* b, int64_t b_stride, A* panels, A* c, int64_t c_stride) {                    \
    product(kind, m, n, depth, alpha, a, a_stride, b, b_stride, panels, c, c_stride);                       \
  }
FUNCTIONS(float, float32)
FUNCTIONS(double, float64)
#undef FUNCTIONS

void tanh_float64(const double* x, int64_t count, double* out) {
  for (int64_t j = 0; j < count; ++j) out[j] = layer::tanh(x[j]);
}

#define MEMORY(T, name)                                                                     \
  void widen_##name(const T* in, int64_t count, acc_t<T>* out) { widen(in, count, out); }   \
  void narrow_##name(const acc_t<T>* in, int64_t count, T* out) { narrow(in, count, out); } \
  void partial_##name(const T* in, int64_t count, T* out) { partial_rows(in, count, out); }
MEMORY(float, float32)
MEMORY(double, float64)
MEMORY(ifdd::bf16, bfloat16)
MEMORY(ifdd::fp16, float16)
#undef MEMORY

}  // extern "C"
