// The device side of torch: whose tensors, which stream, under which key the kernels register. tests/emulator/include
// holds a header of this name for the host emulator, found first there.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include "ifdd/cuda/hardware.h"

// Lives in libtorch_cuda. Weak, because the library must load into a torch without it; no kernel runs there.
#pragma weak aoti_torch_get_current_cuda_stream

// Registers kernels of ops that exist: IFDD_CUDA_LIBRARY(m) { m.impl("op", TORCH_BOX(&op)); }
#define IFDD_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ifdd, CUDA, m)

namespace ifdd::cuda {

inline bool on_device(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

// Makes the device of a tensor current while it lives, and knows the stream that torch uses there.
class CurrentDevice {
 public:
  explicit CurrentDevice(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace ifdd::cuda
