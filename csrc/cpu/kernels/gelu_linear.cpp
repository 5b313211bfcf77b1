// Inner loops of gelu_linear; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "gelu_linear.h"

#include "ifdd/normal.h"
#include "ifdd/simd.h"

namespace ifdd::cpu::IFDD_ISA {

// Rounded to T, whatever it is kept in: the activation is the same function in forward and backward.
template <class T, class Out>
IFDD_INLINE void store_rounded(Out* out, acc_t<T> value) {
  T rounded;
  store(&rounded, value);
  store(out, load(&rounded));
}

template <class T, class Out>
void gelu(const T* x, int64_t count, Out* out) {
  for_each(count, [&](int64_t j) {
    const acc_t<T> value = load(x + j);
    store_rounded<T>(out + j, value * normal(value).cdf);
  });
}

template <class T, class Out>
void gelu_backward(const T* x, int64_t count, Out* out, Out* grad) {
  for_each(count, [&](int64_t j) {
    const acc_t<T> value = load(x + j);
    const Normal<acc_t<T>> at = normal(value);
    store_rounded<T>(out + j, value * at.cdf);
    store(grad + j, load(grad + j) * (at.cdf + value * at.pdf));
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
