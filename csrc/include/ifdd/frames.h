// Frames as the kernels read them.
#pragma once

#include <cstdint>

namespace ifdd {

// Frames (B, T, N, C) with any strides but dense channels.
template <class T>
struct Frames {
  const T* data;
  int64_t batch, frame, token;  // strides
};

}  // namespace ifdd
