// Inner loops of lifting_loss; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "lifting_loss.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
double smooth_l1_sum(const T* r, double beta, int64_t begin, int64_t end) {
  const double half = 0.5 / beta;
  LaneSum<double> sum;
  const T* __restrict__ in = r + begin;
  for_lanes(end - begin, [&](int64_t j, int l) {
    const double v = static_cast<double>(load(in + j));
    const double size = v < 0 ? -v : v;
    sum.lane[l] += size < beta ? v * v * half : size - 0.5 * beta;
  });
  return total(sum);
}

template <class T>
void smooth_l1_gradient(const T* r, double beta, double share, int64_t begin, int64_t end, T* __restrict__ out) {
  for_each(end - begin, [&](int64_t j) {
    const double v = static_cast<double>(load(r + begin + j)) / beta;
    // Comparisons in this order keep a NaN.
    const double clamped = v < -1 ? -1.0 : v > 1 ? 1.0 : v;
    store(out + begin + j, static_cast<acc_t<T>>(share * clamped));
  });
}

#define INSTANTIATE(T)                                                  \
  template double smooth_l1_sum<T>(const T*, double, int64_t, int64_t); \
  template void smooth_l1_gradient<T>(const T*, double, double, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
