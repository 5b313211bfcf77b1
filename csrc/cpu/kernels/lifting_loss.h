// Kernels of lifting_loss, free of torch.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// smooth_l1_sum: sum of l(r) over r[begin, end), l(r) = r^2 / (2 beta) if |r| < beta, else |r| - beta / 2.
// smooth_l1_gradient: out = share * clamp(r / beta, -1, 1) for the elements [begin, end).
IFDD_DECLARE_PER_ISA(template <class T> acc_t<T> smooth_l1_sum(const T* r, acc_t<T> beta, int64_t begin, int64_t end);
                     template <class T> void smooth_l1_gradient(const T* r, acc_t<T> beta, acc_t<T> share,
                                                                int64_t begin, int64_t end, T* out);)

}  // namespace ifdd::cpu
