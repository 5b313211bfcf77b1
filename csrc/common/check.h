// Argument checks of the operators: one message that names op, argument, expected and actual. For every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace ifdd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const char* op, const char* argument, const Parts&... parts) {
  std::ostringstream message;
  message << "ifdd::" << op << ": " << argument << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i == 0 ? "" : ", ") << *(sizes.begin() + i);
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

// Checks a (time, height, width) triple.
template <class Values>
void check_triple(const char* op, const char* argument, const Values& value) {
  bool positive = value.size() == 3;
  for (const auto item : value) positive = positive && item > 0;
  if (!positive) {
    fail(op, argument, "expected three positive integers (time, height, width), got ", shape_text(value));
  }
}

// One of the given dtypes, on any device.
inline void check_dtype(const char* op, const char* argument, const Tensor& tensor,
                        std::initializer_list<ScalarType> dtypes) {
  const ScalarType dtype = tensor.scalar_type();
  if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end()) {
    std::string wanted;
    for (ScalarType candidate : dtypes) wanted += std::string(wanted.empty() ? "" : " or ") + dtype_name(candidate);
    fail(op, argument, "expected dtype ", wanted, ", got ", dtype_name(dtype));
  }
}

// One of the given dtypes and the given shape (-1 allows any size), on any device.
inline void check_layout(const char* op, const char* argument, const Tensor& tensor,
                         std::initializer_list<int64_t> shape, std::initializer_list<ScalarType> dtypes) {
  check_dtype(op, argument, tensor, dtypes);
  const auto sizes = tensor.sizes();
  const auto fits = [](int64_t expected, int64_t actual) { return expected == -1 || expected == actual; };
  if (!std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end(), fits)) {
    fail(op, argument, "expected shape ", shape_text(shape), " (-1: any size), got ", shape_text(sizes));
  }
}

}  // namespace ifdd
