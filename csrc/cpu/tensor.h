// New and readable memory, typed access to it, and the choice of a kernel's element type.
//
// torch/csrc/stable/ops.h finds an operator by its name on every call, which costs more than a small tensor's kernel:
// these helpers make the calls that are not needed no calls at all.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
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

// Asks Linux for 2 MiB pages where a tensor covers whole ones. Large tensors mostly are fresh memory, whose first touch
// costs a fault a page: with pages of 4 KiB more than the arithmetic of a kernel that moves it once. Advice only;
// PyTorch gives it too where THP_MEM_ALLOC_ENABLE=1 is set.
inline void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + tensor.numel() * tensor.element_size()) / kPage * kPage;
  if (tensor.is_cpu() && first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Uninitialised and contiguous, on the device of `like`.
inline Tensor empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape, ScalarType dtype) {
  int32_t dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()),
                                                   &dtype_code, nullptr, nullptr, 0, nullptr, &out));
  const Tensor tensor(out);
  advise_huge_pages(tensor);
  return tensor;
}

// Itself where it is contiguous, else a copy.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Itself where it has the dtype, else a copy.
inline Tensor converted(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Contiguous and in the accumulation type.
inline Tensor accumulable(const Tensor& tensor) {
  return as_contiguous(converted(tensor, accumulation_dtype(tensor.scalar_type())));
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
