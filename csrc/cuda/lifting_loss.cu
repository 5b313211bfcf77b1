// ifdd::lifting_loss and its backward on CUDA. The definition, in plain torch, is in
// ifdd_kernels/reference/lifting_loss.py.
#include <algorithm>
#include <limits>

#include "cuda/common/operator.h"
#include "ifdd/cuda/reduce.h"
#include "ifdd/cuda/scalar.h"

namespace ifdd::cuda {
namespace {

constexpr int kThreads = 256;
// Values a block sums in the first stage; fixed, so that the bits of the result depend on nothing but the input.
constexpr int64_t kChunk = 16384;

// Sum of the smooth L1 distances of a block's values to zero, times `share` where the grid is one block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    lifting_loss_kernel(const T* residual, int64_t count, float beta, float share, float* partial) {
  BlockScratch<float>& scratch = static_shared<BlockScratch<float>>();
  const int64_t begin = blockIdx.x * kChunk, end = begin + kChunk < count ? begin + kChunk : count;
  float sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float distance = fabsf(widen(residual[i]));
    sum += distance < beta ? 0.5f * distance * distance / beta : distance - 0.5f * beta;
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = gridDim.x == 1 ? sum * share : sum;
}

// One block: the sum of the first stage's sums, times `share`.
__global__ void __launch_bounds__(kThreads)
    lifting_loss_sum_kernel(const float* partial, int64_t count, float share, float* loss) {
  BlockScratch<float>& scratch = static_shared<BlockScratch<float>>();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) *loss = sum * share;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    lifting_loss_backward_kernel(const T* residual, int64_t count, float beta, float share, const float* grad, T* out) {
  const float scale = *grad * share;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float ratio = widen(residual[i]) / beta;
    const float above = ratio < -1 ? -1.0f : ratio;  // a NaN stays one
    out[i] = narrow<T>(scale * (above > 1 ? 1.0f : above));
  }
}

void check_inputs(const char* op, const Tensor& residual, double beta) {
  if (residual.dim() < 1) fail(op, "residual", "expected shape (B, ...), got a scalar");
  if (!on_device(residual)) fail(op, "residual", "expected a tensor on a CUDA device, got one on another device");
  const ScalarType dtype = residual.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Half && dtype != ScalarType::BFloat16) {
    fail(op, "residual", "expected dtype float32 or float16 or bfloat16, got ", dtype_name(dtype));
  }
  if (!(beta > 0)) fail(op, "beta", "expected a positive number, got ", beta);
}

// Weight of one element in the loss. No clips: the sum is 0, the mean is not defined, as in PyTorch; nor is the mean of
// a clip without cells.
float share_of(const Tensor& residual, double weight, bool mean) {
  const double clips = static_cast<double>(residual.size(0)), count = static_cast<double>(residual.numel());
  if (residual.size(0) == 0 ? mean : count == 0) return std::numeric_limits<float>::quiet_NaN();
  const double cells = residual.size(0) == 0 ? 1.0 : count / clips;
  return static_cast<float>(weight / (cells * (mean ? clips : 1.0)));
}

Tensor lifting_loss(const Tensor& residual, double weight, double beta, bool mean) {
  const char* op = "lifting_loss";
  check_inputs(op, residual, beta);
  const CurrentDevice device(residual);
  const Tensor r = stable::contiguous(residual);
  const int64_t count = r.numel(), blocks = std::max<int64_t>(1, (count + kChunk - 1) / kChunk);
  const Tensor loss = stable::new_empty(residual, {}, ScalarType::Float);
  const Tensor partial = blocks == 1 ? loss : stable::new_empty(residual, {blocks}, ScalarType::Float);
  const float share = share_of(r, weight, mean);
  dispatch_dtype(op, r.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    run(op, device, lifting_loss_kernel<T>, dim3(grid_size(op, blocks)), kThreads, 0, data<T>(r), count,
        static_cast<float>(beta), share, mutable_data<float>(partial));
  });
  if (blocks > 1) {
    run(op, device, lifting_loss_sum_kernel, dim3(1), kThreads, 0, data<float>(partial), blocks, share,
        mutable_data<float>(loss));
  }
  return loss;
}

Tensor lifting_loss_backward(const Tensor& grad, const Tensor& residual, double weight, double beta, bool mean) {
  const char* op = "lifting_loss_backward";
  check_inputs(op, residual, beta);
  check_tensor(op, "grad_loss", grad, residual, {}, {ScalarType::Float});
  const CurrentDevice device(residual);
  const Tensor r = stable::contiguous(residual);
  const Tensor out = stable::new_empty(residual, residual.sizes());
  const int64_t count = r.numel(), blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 4096);
  dispatch_dtype(op, r.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    run(op, device, lifting_loss_backward_kernel<T>, dim3(grid_size(op, blocks)), kThreads, 0, data<T>(r), count,
        static_cast<float>(beta), share_of(r, weight, mean), data<float>(grad), mutable_data<T>(out));
  });
  return out;
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("lifting_loss", TORCH_BOX(&lifting_loss));
  m.impl("lifting_loss_backward", TORCH_BOX(&lifting_loss_backward));
}

}  // namespace ifdd::cuda
