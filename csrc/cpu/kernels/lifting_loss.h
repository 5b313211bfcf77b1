// Kernels of lifting_loss, free of torch.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// In double, for there are few elements, of which a loss and its gradient should lose nothing but their own rounding.
//
// smooth_l1_sum: sum of l(r) over r[begin, end), l(r) = r^2 / (2 beta) if |r| < beta, else |r| - beta / 2.
// smooth_l1_gradient: out = share * clamp(r / beta, -1, 1) for the elements [begin, end).
IFDD_DECLARE_PER_ISA(template <class T> double smooth_l1_sum(const T* r, double beta, int64_t begin, int64_t end);
                     template <class T> void smooth_l1_gradient(const T* r, double beta, double share, int64_t begin,
                                                                int64_t end, T* out);)

}  // namespace ifdd::cpu
