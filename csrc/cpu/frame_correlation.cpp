// ifdd::frame_correlation and its backward on the CPU. The arithmetic is in kernels/split_index.cpp; the definition, in
// plain torch, in ifdd_kernels/reference/frame_correlation.py.
#include <torch/csrc/stable/library.h>

#include "boundary.h"
#include "correlation.h"

namespace ifdd::cpu {
namespace {

Tensor frame_correlation(const Tensor& tokens, double scale) {
  const char* op = "frame_correlation";
  check_floating(op, "tokens", tokens, {-1, -1, -1});
  const int64_t B = tokens.size(0), frames = tokens.size(1), D = tokens.size(2);
  check_extent(op, "tokens", {B, frames, frames});
  const Tensor z = as_contiguous(tokens);
  const Tensor correlation = empty(tokens, {B, frames, frames}, accumulation_dtype(tokens.scalar_type()));
  dispatch(tokens.scalar_type(), [&](auto type) {
    using T = decltype(type);
    correlate_clips(data<T>(z), B, frames, D, scale, mutable_data<acc_t<T>>(correlation));
  });
  return correlation;
}

Tensor frame_correlation_backward(const Tensor& grad, const Tensor& tokens, double scale) {
  const char* op = "frame_correlation_backward";
  check_floating(op, "tokens", tokens, {-1, -1, -1});
  const int64_t B = tokens.size(0), frames = tokens.size(1), D = tokens.size(2);
  check_extent(op, "tokens", {B, frames, frames});
  check_tensor(op, "grad_correlation", grad, {B, frames, frames}, {accumulation_dtype(tokens.scalar_type())});
  const Tensor z = as_contiguous(tokens), g = as_contiguous(grad);
  const Tensor grad_z = empty(tokens, {B, frames, D}, tokens.scalar_type());
  dispatch(tokens.scalar_type(), [&](auto type) {
    using T = decltype(type);
    correlate_clips_backward(data<acc_t<T>>(g), data<T>(z), B, frames, D, scale, mutable_data<T>(grad_z));
  });
  return grad_z;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("frame_correlation", IFDD_BOX(&frame_correlation));
  m.impl("frame_correlation_backward", IFDD_BOX(&frame_correlation_backward));
}

}  // namespace ifdd::cpu
