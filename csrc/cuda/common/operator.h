// What the CUDA operators share on the host side: checks of arguments, typed access to tensors, choice of a kernel's
// template arguments, launches that raise.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "../../common/check.h"
#include "cuda/common/device.h"
#include "ifdd/accumulate.h"

namespace ifdd::cuda {

namespace stable = torch::stable;

// A tensor on the device of `like` (the first tensor of the op; itself for that one), of the given shape (-1 allows any
// size) and one of the given dtypes.
inline void check_tensor(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                         std::initializer_list<int64_t> shape, std::initializer_list<ScalarType> dtypes) {
  if (!on_device(tensor) || tensor.get_device_index() != like.get_device_index()) {
    fail(op, argument, "expected a tensor on the CUDA device of the first argument, got one on another device");
  }
  check_layout(op, argument, tensor, shape, dtypes);
}

// An activation: of one of the dtypes the kernels compute in.
inline void check_activation(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                             std::initializer_list<int64_t> shape) {
  check_tensor(op, argument, tensor, like, shape, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
}

// A parameter beside activations of `dtype`: of that dtype or float32.
inline void check_parameter(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                            std::initializer_list<int64_t> shape, ScalarType dtype) {
  if (dtype == ScalarType::Float) {
    check_tensor(op, argument, tensor, like, shape, {ScalarType::Float});
  } else {
    check_tensor(op, argument, tensor, like, shape, {dtype, ScalarType::Float});
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

// A tensor whose last axis is dense: itself, or a copy.
inline Tensor dense_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) == 1 ? tensor : stable::contiguous(tensor);
}

// Contiguous and in float32.
inline Tensor as_float(const Tensor& tensor) {
  return stable::contiguous(tensor.scalar_type() == ScalarType::Float ? tensor : stable::to(tensor, ScalarType::Float));
}

template <class T>
struct Type {
  using type = T;
};

// Calls f(Type<T>{}) with the element type of a dtype that was checked before.
template <class F>
auto dispatch_dtype(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::Half:
      return f(Type<__half>{});
    case ScalarType::BFloat16:
      return f(Type<__nv_bfloat16>{});
    default:
      fail(op, "dtype", "expected float32, float16 or bfloat16, got ", dtype_name(dtype));
  }
}

// Calls f(std::integral_constant<int, v>{}) with the smallest of the given values that is not below `value`; refuses a
// value above them all. The values ascend.
template <int First, int... Rest, class F>
auto dispatch_at_least(const char* op, const char* argument, const char* what, int64_t value, const F& f) {
  if (value <= First) return f(std::integral_constant<int, First>{});
  if constexpr (sizeof...(Rest) > 0) {
    return dispatch_at_least<Rest...>(op, argument, what, value, f);
  } else {
    fail(op, argument, "expected ", what, " <= ", First, " (the CUDA kernels hold it in registers), got ", value);
  }
}

// Calls f with true or false as a compile-time constant.
template <class F>
auto dispatch_bool(bool value, const F& f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

// A grid axis of `count` blocks, refused where it does not fit.
inline unsigned grid_size(const char* op, int64_t count) {
  if (count > INT32_MAX)
    throw std::runtime_error(std::string("ifdd::") + op + ": too many blocks: " + std::to_string(count));
  return static_cast<unsigned>(count);
}

// Launches a kernel on a tensor's device and its current stream, and raises where that fails. An empty grid is no work.
template <class... Parameters, class... Arguments>
void run(const char* op, const CurrentDevice& device, void (*kernel)(Parameters...), dim3 grid, int threads,
         size_t shared_bytes, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const Launch how{grid, dim3(static_cast<unsigned>(threads)), shared_bytes, device.stream()};
  constexpr size_t kWithoutAsking = 48 * 1024;
  cudaError_t error = shared_bytes > kWithoutAsking ? allow_shared_bytes(kernel, shared_bytes) : cudaSuccess;
  if (error == cudaSuccess) error = launch(kernel, how, std::forward<Arguments>(arguments)...);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("ifdd::") + op +
                             ": the kernel was not launched: " + cudaGetErrorString(error));
  }
}

}  // namespace ifdd::cuda
