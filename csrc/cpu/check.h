// Argument checks of the CPU kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>

#include "../common/check.h"

namespace ifdd::cpu {

inline void check_device(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail(op, argument, "expected a tensor on the CPU, got one on another device");
}

// A CPU tensor of the given shape (-1 allows any size) and one of the given dtypes.
inline void check_tensor(const char* op, const char* argument, const Tensor& tensor,
                         std::initializer_list<int64_t> shape, std::initializer_list<ScalarType> dtypes) {
  check_device(op, argument, tensor);
  check_layout(op, argument, tensor, shape, dtypes);
}

}  // namespace ifdd::cpu
