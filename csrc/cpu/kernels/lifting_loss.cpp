// Inner loops of lifting_loss; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "lifting_loss.h"

#include "ifdd/simd.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
acc_t<T> smooth_l1_sum(const T* r, acc_t<T> beta, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const A half = A(0.5) / beta;
  LaneSum<A> sum;
  const T* __restrict__ in = r + begin;
  for_lanes(end - begin, [&](int64_t j, int l) {
    const A v = load(in + j);
    const A size = v < 0 ? -v : v;
    sum.lane[l] += size < beta ? v * v * half : size - A(0.5) * beta;
  });
  return total(sum);
}

template <class T>
void smooth_l1_gradient(const T* r, acc_t<T> beta, acc_t<T> share, int64_t begin, int64_t end, T* __restrict__ out) {
  using A = acc_t<T>;
  for_each(end - begin, [&](int64_t j) {
    const A v = load(r + begin + j) / beta;
    // Comparisons in this order keep a NaN.
    const A clamped = v < -1 ? A(-1) : v > 1 ? A(1) : v;
    store(out + begin + j, share * clamped);
  });
}

#define INSTANTIATE(T)                                                      \
  template acc_t<T> smooth_l1_sum<T>(const T*, acc_t<T>, int64_t, int64_t); \
  template void smooth_l1_gradient<T>(const T*, acc_t<T>, acc_t<T>, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
