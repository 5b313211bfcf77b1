// Inner loops of gelu_linear; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "gelu_linear.h"

#include "ifdd/normal.h"
#include "ifdd/simd.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
void gelu(const T* x, int64_t begin, int64_t end, T* out) {
  for_each(end - begin, [&](int64_t j) {
    const acc_t<T> value = load(x + begin + j);
    store(out + begin + j, value * normal(value).cdf);
  });
}

template <class T>
void gelu_backward(const T* x, int64_t begin, int64_t end, T* out, T* grad) {
  for_each(end - begin, [&](int64_t j) {
    const acc_t<T> value = load(x + begin + j);
    const Normal<acc_t<T>> at = normal(value);
    store(out + begin + j, value * at.cdf);
    store(grad + begin + j, load(grad + begin + j) * (at.cdf + value * at.pdf));
  });
}

#define INSTANTIATE(T)                                   \
  template void gelu<T>(const T*, int64_t, int64_t, T*); \
  template void gelu_backward<T>(const T*, int64_t, int64_t, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
