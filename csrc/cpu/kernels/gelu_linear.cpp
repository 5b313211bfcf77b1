// Inner loops of gelu_linear; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "gelu_linear.h"

#include "ifdd/vector/loops.h"
#include "ifdd/vector/math.h"

namespace ifdd::cpu::IFDD_ISA {

// The activation is rounded to T in forward and backward, also where it is kept in float: it is one function.
template <class T, class Out>
void gelu(const T* x, int64_t count, Out* out) {
  for_vectors<acc_t<T>>(count, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    const auto value = lanes.read(x + j);
    lanes.write(out + j, rounded<T>(value * normal(value).cdf));
  });
}

template <class T, class Out>
void gelu_backward(const T* x, int64_t count, Out* out, Out* grad) {
  for_vectors<acc_t<T>>(count, [&](int64_t j, auto lanes) __attribute__((always_inline)) {
    const auto value = lanes.read(x + j);
    const auto at = normal(value);
    lanes.write(out + j, rounded<T>(value * at.cdf));
    lanes.write(grad + j, lanes.read(grad + j) * (at.cdf + value * at.pdf));
  });
}

#define INSTANTIATE(T, Out)                            \
  template void gelu<T, Out>(const T*, int64_t, Out*); \
  template void gelu_backward<T, Out>(const T*, int64_t, Out*, Out*);
INSTANTIATE(float, float)
INSTANTIATE(double, double)
INSTANTIATE(bf16, bf16)
INSTANTIATE(bf16, float)
INSTANTIATE(fp16, fp16)
INSTANTIATE(fp16, float)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
