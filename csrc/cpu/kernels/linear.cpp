// Inner loops of linear; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "linear.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
void widen_all(const T* in, int64_t count, float* out) {
  widen(in, count, out);
}

template <class T>
void round_all(const float* in, int64_t count, T* out) {
  narrow(in, count, out);
}

template <class T>
void finish(const float* in, int64_t rows, int64_t columns, const float* bias, T* out) {
  for (int64_t r = 0; r < rows; ++r, in += columns, out += columns) {
    for_vectors<float>(columns,
                       [&](int64_t j, auto lanes) { lanes.write(out + j, lanes.read(in + j) + lanes.read(bias + j)); });
  }
}

template <class T>
void widen_and_sum(const T* in, int64_t rows, int64_t columns, float* out, float* sum) {
  for_vectors<float>(columns, [&](int64_t j, auto lanes) { lanes.write(sum + j, Vec<float>{}); });
  for (int64_t r = 0; r < rows; ++r, in += columns, out += columns) {
    for_vectors<float>(columns, [&](int64_t j, auto lanes) {
      const Vec<float> value = lanes.read(in + j);
      lanes.write(out + j, value);
      lanes.write(sum + j, lanes.read(sum + j) + value);
    });
  }
}

#define INSTANTIATE(T)                                                        \
  template void widen_all<T>(const T*, int64_t, float*);                      \
  template void round_all<T>(const float*, int64_t, T*);                      \
  template void widen_and_sum<T>(const T*, int64_t, int64_t, float*, float*); \
  template void finish<T>(const float*, int64_t, int64_t, const float*, T*);
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
