// Typed access to tensors and the choice of a kernel's element type.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

#include "check.h"
#include "ifdd/scalar.h"

namespace ifdd::cpu {

inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the element type: one of the four activation dtypes, checked before.
template <class F>
auto dispatch(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::BFloat16:
      return f(bf16{});
    case ScalarType::Half:
      return f(fp16{});
    default:
      return f(float{});
  }
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Contiguous and in the accumulation type.
inline Tensor accumulable(const Tensor& tensor) {
  const ScalarType wanted = accumulation_dtype(tensor.scalar_type());
  return torch::stable::contiguous(tensor.scalar_type() == wanted ? tensor : torch::stable::to(tensor, wanted));
}

// Checks a parameter: of the given shape and, beside activations of `dtype`, of that dtype or float32 (float64 only
// with float64).
inline void check_parameter(const char* op, const char* argument, const Tensor& tensor,
                            std::initializer_list<int64_t> shape, ScalarType dtype) {
  if (dtype == ScalarType::Double) {
    check_tensor(op, argument, tensor, shape, {ScalarType::Double});
  } else if (dtype == ScalarType::Float) {
    check_tensor(op, argument, tensor, shape, {ScalarType::Float});
  } else {
    check_tensor(op, argument, tensor, shape, {dtype, ScalarType::Float});
  }
}

}  // namespace ifdd::cpu
