// Inner loops of sum_rows; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "sum_rows.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {

template <class A>
void sum_rows(const A* in, int64_t rows, int64_t stride, int64_t begin, int64_t end, A* out) {
  // Blocks of columns, summed in double: there may be many thousands of partial sums.
  for (int64_t c = begin; c < end; c += kLanes) {
    const int64_t width = end - c < kLanes ? end - c : kLanes;
    LaneSum<double> sum;
    for (int64_t r = 0; r < rows; ++r) for_each(width, [&](int64_t j) { sum.lane[j] += in[r * stride + c + j]; });
    for_each(width, [&](int64_t j) { out[c + j] = static_cast<A>(sum.lane[j]); });
  }
}

template void sum_rows<float>(const float*, int64_t, int64_t, int64_t, int64_t, float*);
template void sum_rows<double>(const double*, int64_t, int64_t, int64_t, int64_t, double*);

}  // namespace ifdd::cpu::IFDD_ISA
