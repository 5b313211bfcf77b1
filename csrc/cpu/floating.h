// The check of an argument of the four floating types.
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

}  // namespace ifdd::cpu
