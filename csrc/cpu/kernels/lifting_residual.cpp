// Inner loops of lifting_residual; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "lifting_residual.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
void mean_frames(const Clip<T>& x, int64_t begin, int64_t end, double* out) {
  for (int64_t cell = begin; cell < end; ++cell) {
    const T* first = x.frames.data + cell / x.N * x.frames.batch + cell % x.N * x.frames.token;
    // The means of x and of its approximation nearly cancel: rows in the accumulation type, their sums in double.
    double sum = 0;
    for (int64_t k = 0; k < x.K; ++k) {
      const T* __restrict__ row = first + k * x.frames.frame;
      LaneSum<acc_t<T>> lanes;
      for_lanes(x.C, [&](int64_t j, int l) { lanes.lane[l] += load(row + j); });
      sum += total(lanes);
    }
    out[cell] = sum / (static_cast<double>(x.K) * static_cast<double>(x.C));
  }
}

template <class T>
void spread_frames(const acc_t<T>* grad, double share, int64_t K, int64_t N, int64_t C, int64_t begin, int64_t end,
                   T* out) {
  for (int64_t r = begin; r < end; ++r) {
    T value;
    store(&value, static_cast<acc_t<T>>(share * static_cast<double>(grad[r / (K * N) * N + r % N])));
    T* __restrict__ row = out + r * C;
    for_each(C, [&](int64_t j) { row[j] = value; });
  }
}

#define INSTANTIATE(T)                                                     \
  template void mean_frames<T>(const Clip<T>&, int64_t, int64_t, double*); \
  template void spread_frames<T>(const acc_t<T>*, double, int64_t, int64_t, int64_t, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
