// Tensors of the four floating types: the check of an argument, and new memory.
#pragma once

#include <initializer_list>

#include "tensor.h"

namespace ifdd::cpu {

namespace stable = torch::stable;

inline void check_floating(const char* op, const char* argument, const Tensor& tensor,
                           std::initializer_list<int64_t> shape) {
  check_tensor(op, argument, tensor, shape,
               {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return stable::new_empty(like, shape, dtype);
}

}  // namespace ifdd::cpu
