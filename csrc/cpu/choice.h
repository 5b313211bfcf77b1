// Whether products of 16-bit matrices go through float32: a choice of the machine, made once a process and dtype.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

namespace ifdd::cpu {

// False for dtypes of other sizes. At the first product of a dtype the process is asked (ifdd_kernels/_products.py
// measures, or reads what was measured before); a process without Python takes choice.cpp's guess.
bool through_float32(torch::headeronly::ScalarType dtype);

}  // namespace ifdd::cpu
