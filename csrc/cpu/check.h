// Argument checks of the CPU kernels.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "../common/check.h"

namespace ifdd::cpu {

// More elements than an address space holds. Products of sizes below it may be multiplied with the constants of the
// kernels (27 taps, padding to 16, 8 bytes) and stay in 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 47;

// Refuses sizes whose product could overflow what is computed of them. A size of zero counts as one: an empty tensor
// holds nothing, but its other sizes are multiplied with each other and with those of other tensors.
template <class Sizes>
void check_extent(const char* op, const char* argument, const Sizes& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    const int64_t factor = std::max<int64_t>(1, size);
    if (factor > kMostElements / product) {
      fail(op, argument, "expected sizes whose product is at most 2**47, got ", shape_text(sizes));
    }
    product *= factor;
  }
}
inline void check_extent(const char* op, const char* argument, std::initializer_list<int64_t> sizes) {
  check_extent<std::initializer_list<int64_t>>(op, argument, sizes);
}

// A tensor in this machine's memory.
inline void check_device(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) fail(op, argument, "expected a tensor on the CPU, got one on another device");
  check_extent(op, argument, tensor.sizes());
}

// A CPU tensor of the given shape (-1 allows any size) and one of the given dtypes.
inline void check_tensor(const char* op, const char* argument, const Tensor& tensor,
                         std::initializer_list<int64_t> shape, std::initializer_list<ScalarType> dtypes) {
  check_device(op, argument, tensor);
  check_layout(op, argument, tensor, shape, dtypes);
}

}  // namespace ifdd::cpu
