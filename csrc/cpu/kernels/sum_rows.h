// The sum of partial sums, free of torch.
#pragma once

#include <cstdint>

#include "ifdd/isa.h"

namespace ifdd::cpu {

// out[c] = sum over rows r of in[r * stride + c], in order of r and in float64, for c in [begin, end).
IFDD_DECLARE_PER_ISA(template <class A>
                     void sum_rows(const A* in, int64_t rows, int64_t stride, int64_t begin, int64_t end, A* out);)

}  // namespace ifdd::cpu
