// The host emulator's side of csrc/cuda/common/device.h: kernels take CPU tensors and are registered in a namespace of
// the test's (IFDD_EMULATOR_NAMESPACE), so that the sound and the broken build of an op live in one process.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "ifdd/cuda/hardware.h"

#define IFDD_EMULATOR_LIBRARY(name, m) STABLE_TORCH_LIBRARY_IMPL(name, CPU, m)
#define IFDD_CUDA_LIBRARY(m) IFDD_EMULATOR_LIBRARY(IFDD_EMULATOR_NAMESPACE, m)

namespace ifdd::cuda {

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

class CurrentDevice {
 public:
  explicit CurrentDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

}  // namespace ifdd::cuda
