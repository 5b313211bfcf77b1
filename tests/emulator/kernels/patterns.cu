// A warp's accesses of memory in patterns whose counts are known, for the tests of the counters (test_counts.py).
#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/vector.h"

namespace ifdd::cuda {
namespace {

// Lane i at element i * stride, in memory or in shared memory.
__global__ void __launch_bounds__(kWarp) load_kernel(const float* x, float* y, int stride) {
  const int i = threadIdx.x;
  y[i] = x[i * stride];
}

__global__ void __launch_bounds__(kWarp) store_kernel(const float* x, float* y, int stride) {
  const int i = threadIdx.x;
  y[i * stride] = x[i];
}

__global__ void __launch_bounds__(kWarp) store_vectors_kernel(const float* x, float* y, int stride) {
  const int i = threadIdx.x;
  float v[4];
  load<4>(x + 4 * i * stride, v);
  store<4>(y + 4 * i * stride, v);
}

// Every other lane.
__global__ void __launch_bounds__(kWarp) half_kernel(const float* x, float* y, int stride) {
  const int i = threadIdx.x;
  if (i % 2 == 0) y[i * stride] = x[i * stride];
}

// Lanes that run for different times: lane i reads i + 1 rows.
__global__ void __launch_bounds__(kWarp) ragged_kernel(const float* x, float* y, int stride) {
  const int i = threadIdx.x;
  float sum = 0;
  for (int row = 0; row <= i; ++row) sum += x[row * stride + i];
  y[i] = sum;
}

__global__ void __launch_bounds__(kWarp) shared_kernel(const float* x, float* y, int stride) {
  float* cell = reinterpret_cast<float*>(dynamic_shared());
  const int i = threadIdx.x;
  cell[i * stride] = x[i];
  __syncwarp();
  y[i] = cell[i * stride];
}

__global__ void __launch_bounds__(kWarp) shared_vectors_kernel(const float* x, float* y, int stride) {
  float* cell = reinterpret_cast<float*>(dynamic_shared());
  const int i = threadIdx.x;
  copy_async<16>(cell + 4 * i * stride, x + 4 * i, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  float v[4];
  load<4>(cell + 4 * i * stride, v);
  store<4>(y + 4 * i, v);
}

// Rows of 16 bytes, each `stride` rows behind the last.
__global__ void __launch_bounds__(kWarp) matrices_kernel(const float*, float* y, int stride) {
  const int i = threadIdx.x;
  uint32_t r[4];
  load_matrices(r, dynamic_shared() + 16 * i * stride);
  y[i] = static_cast<float>(r[0]);
}

using Kernel = void (*)(const float*, float*, int);
constexpr Kernel kKernels[] = {load_kernel,   store_kernel,  store_vectors_kernel,  half_kernel,
                               ragged_kernel, shared_kernel, shared_vectors_kernel, matrices_kernel};

Tensor pattern(const Tensor& x, int64_t which, int64_t stride) {
  const CurrentDevice device(x);
  const Tensor y = stable::empty_like(x);
  run("pattern", device, kKernels[which], dim3(1), kWarp, 16 * kWarp * static_cast<size_t>(stride + 1), data<float>(x),
      mutable_data<float>(y), static_cast<int>(stride));
  return y;
}

}  // namespace

IFDD_CUDA_LIBRARY(m) { m.impl("pattern", TORCH_BOX(&pattern)); }

}  // namespace ifdd::cuda
