// Kernels of gelu_linear, free of torch: the activation; the products are PyTorch's.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// Elements [begin, end) of contiguous arrays.
// gelu: out = x Phi(x).
// gelu_backward: out = x Phi(x), the activation again, and grad, in place, times its derivative Phi(x) + x phi(x).
IFDD_DECLARE_PER_ISA(template <class T> void gelu(const T* x, int64_t begin, int64_t end, T* out);
                     template <class T> void gelu_backward(const T* x, int64_t begin, int64_t end, T* out, T* grad);)

}  // namespace ifdd::cpu
