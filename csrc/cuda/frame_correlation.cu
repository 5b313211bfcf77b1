// ifdd::frame_correlation and its backward on CUDA. The products are in correlation.h; the definition, in plain torch,
// in ifdd_kernels/reference/frame_correlation.py.
#include "cuda/correlation.h"

namespace ifdd::cuda {
namespace {

// A warp forms one tile of one clip's products.
template <class T>
__global__ void __launch_bounds__(kCorrelationThreads)
    frame_correlation_kernel(const T* z, int64_t B, int64_t frames, int64_t D, float scale, float* out) {
  const int64_t tiles = correlation_tiles(frames);
  const int64_t work = static_cast<int64_t>(blockIdx.x) * (kCorrelationThreads / kWarp) + warp_index();
  if (work >= B * tiles) return;
  const int64_t b = work / tiles;
  correlate_tile(z + b * frames * D, frames, D, scale, work % tiles, out + b * frames * frames);
}

Tensor frame_correlation(const Tensor& tokens, double scale) {
  const char* op = "frame_correlation";
  check_activation(op, "tokens", tokens, tokens, {-1, -1, -1});
  const int64_t B = tokens.size(0), frames = tokens.size(1), D = tokens.size(2);
  const CurrentDevice device(tokens);
  const Tensor z = stable::contiguous(tokens);
  const Tensor correlation = stable::new_empty(tokens, {B, frames, frames}, ScalarType::Float);
  dispatch_dtype(op, tokens.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int64_t kWarps = kCorrelationThreads / kWarp;
    run(op, device, frame_correlation_kernel<T>,
        dim3(grid_size(op, (B * correlation_tiles(frames) + kWarps - 1) / kWarps)), kCorrelationThreads, 0, data<T>(z),
        B, frames, D, static_cast<float>(scale), mutable_data<float>(correlation));
  });
  return correlation;
}

Tensor frame_correlation_backward(const Tensor& grad, const Tensor& tokens, double scale) {
  const char* op = "frame_correlation_backward";
  check_activation(op, "tokens", tokens, tokens, {-1, -1, -1});
  const int64_t B = tokens.size(0), frames = tokens.size(1), D = tokens.size(2);
  check_tensor(op, "grad_correlation", grad, tokens, {B, frames, frames}, {ScalarType::Float});
  const CurrentDevice device(tokens);
  const Tensor z = stable::contiguous(tokens), g = stable::contiguous(grad);
  const Tensor grad_z = stable::new_empty(tokens, {B, frames, D});
  dispatch_dtype(op, tokens.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_correlation_backward(op, device, data<float>(g), data<T>(z), B, frames, D, scale, mutable_data<T>(grad_z));
  });
  return grad_z;
}

}  // namespace

IFDD_CUDA_LIBRARY(m) {
  m.impl("frame_correlation", TORCH_BOX(&frame_correlation));
  m.impl("frame_correlation_backward", TORCH_BOX(&frame_correlation_backward));
}

}  // namespace ifdd::cuda
