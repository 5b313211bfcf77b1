// Kernels of gelu_linear, free of torch: the activation.
#pragma once

#include <cstdint>

#include "ifdd/scalar.h"

namespace ifdd::cpu {

// `count` elements of contiguous arrays; out and grad are of T, or float where the product is computed in it.
// gelu: out = x Phi(x), rounded to T.
// gelu_backward: out = x Phi(x), the activation again, and grad, in place, times its derivative Phi(x) + x phi(x).
IFDD_DECLARE_PER_ISA(template <class T, class Out> void gelu(const T* x, int64_t count, Out* out);
                     template <class T, class Out> void gelu_backward(const T* x, int64_t count, Out* out, Out* grad);)

}  // namespace ifdd::cpu
