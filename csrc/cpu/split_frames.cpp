// ifdd::split_frames and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/split_frames.cpp; the definition, in plain torch, in ifdd_kernels/reference/split_frames.py.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "boundary.h"
#include "sampling.h"

namespace ifdd::cpu {
namespace {

SplitInputs check_inputs(const char* op, const Tensor& x, const Tensor& static_index, const Tensor& dynamic_index) {
  check_tensor(op, "x", x, {-1, -1, -1, -1},
               {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  const ScalarType dtype = x.scalar_type();
  const int64_t B = x.size(0);
  const auto check_index = [&](const char* argument, const Tensor& index) {
    check_tensor(op, argument, index, {B, -1}, {accumulation_dtype(dtype), ScalarType::Long});
    if (index.size(1) < 1)
      fail(op, argument, "expected at least one index per clip, got shape ", shape_text(index.sizes()));
  };
  check_index("static_index", static_index);
  check_index("dynamic_index", dynamic_index);
  if (static_index.scalar_type() != dynamic_index.scalar_type()) {
    fail(op, "dynamic_index", "expected the dtype of static_index, ", dtype_name(static_index.scalar_type()), ", got ",
         dtype_name(dynamic_index.scalar_type()));
  }
  const bool gather = static_index.scalar_type() == ScalarType::Long;
  const SplitSizes size{x.size(1), x.size(2), x.size(3), static_index.size(1), dynamic_index.size(1)};
  const int64_t frames = gather ? 1 : 2;
  if (size.T < frames) {
    fail(op, "x", "expected at least ", frames, " frames for ", gather ? "integer" : "floating", " indexes, got shape ",
         shape_text(x.sizes()));
  }
  if (size.C < 1) fail(op, "x", "expected at least one channel, got shape ", shape_text(x.sizes()));
  check_extent(op, "dynamic_index", {B, size.Ks + size.Kd, size.N, size.C});
  return {B, size, dtype, gather};
}

template <class A>
void fill_samples(const char* op, const char* argument, const Tensor& index, const SplitInputs& in, bool aligned,
                  int64_t first_slot, std::vector<Sample<A>>& samples) {
  const int64_t slots = index.size(1), all = in.size.Ks + in.size.Kd;
  const Tensor read = as_contiguous(index);
  for (int64_t b = 0; b < in.B; ++b) {
    for (int64_t k = 0; k < slots; ++k) {
      Sample<A>& sample = samples[b * all + first_slot + k];
      if (in.gather) {
        const int64_t t = data<int64_t>(read)[b * slots + k];
        if (t < 0 || t >= in.size.T) {
          fail(op, argument, "index out of range: expected 0 <= index < T = ", in.size.T, ", got ", t, " at (", b, ", ",
               k, ")");
        }
        sample = {t, t, A(0), A(0)};
      } else {
        sample = interpolate(data<A>(read)[b * slots + k], in.size.T, aligned);
      }
    }
  }
}

template <class A>
std::vector<Sample<A>> make_samples(const char* op, const Tensor& static_index, const Tensor& dynamic_index,
                                    const SplitInputs& in, bool aligned) {
  std::vector<Sample<A>> samples(in.B * (in.size.Ks + in.size.Kd));
  fill_samples(op, "static_index", static_index, in, aligned, 0, samples);
  fill_samples(op, "dynamic_index", dynamic_index, in, aligned, in.size.Ks, samples);
  return samples;
}

std::tuple<Tensor, Tensor, Tensor> split_frames(const Tensor& x, const Tensor& static_index,
                                                const Tensor& dynamic_index, const OptionalTensor& static_norm_weight,
                                                const OptionalTensor& static_norm_bias,
                                                const OptionalTensor& dynamic_norm_weight,
                                                const OptionalTensor& dynamic_norm_bias, double eps, bool aligned) {
  const char* op = "split_frames";
  const SplitInputs in = check_inputs(op, x, static_index, dynamic_index);
  const bool norm = check_norms(op, in,
                                {{"static_norm_weight", &static_norm_weight},
                                 {"static_norm_bias", &static_norm_bias},
                                 {"dynamic_norm_weight", &dynamic_norm_weight},
                                 {"dynamic_norm_bias", &dynamic_norm_bias}});
  if (norm && !(eps > 0)) fail(op, "eps", "expected a positive number, got ", eps);
  const auto [T, N, C, Ks, Kd] = in.size;
  const int64_t K = Ks + Kd;
  const Tensor rows = dense_channels(x);
  const Tensor frames[2] = {empty(x, {in.B, Ks, N, C}, in.dtype), empty(x, {in.B, Kd, N, C}, in.dtype)};
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  const Tensor stats = norm ? empty(x, {in.B, K, N, 2}, acc_dtype) : empty(x, {0}, acc_dtype);
  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const std::vector<Sample<A>> samples = make_samples<A>(op, static_index, dynamic_index, in, aligned);
    const OptionalTensor *weights[2] = {&static_norm_weight, &dynamic_norm_weight},
                         *biases[2] = {&static_norm_bias, &dynamic_norm_bias};
    const SplitNorms<A> norms(norm, weights, biases);
    sample_frames(split_call<E>(in, rows, samples, norms, static_cast<A>(eps), frames, stats), 0, in.B * N);
  });
  return {frames[0], frames[1], stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> split_frames_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& x, const Tensor& static_index,
    const Tensor& dynamic_index, const OptionalTensor& static_norm_weight, const OptionalTensor& dynamic_norm_weight,
    const Tensor& stats, bool aligned) {
  const char* op = "split_frames_backward";
  const SplitInputs in = check_inputs(op, x, static_index, dynamic_index);
  const auto [T, N, C, Ks, Kd] = in.size;
  const int64_t K = Ks + Kd;
  check_tensor(op, "grad_static_frames", grad_static, {in.B, Ks, N, C}, {in.dtype});
  check_tensor(op, "grad_dynamic_frames", grad_dynamic, {in.B, Kd, N, C}, {in.dtype});
  const bool norm =
      check_norms(op, in, {{"static_norm_weight", &static_norm_weight}, {"dynamic_norm_weight", &dynamic_norm_weight}});
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  if (norm) {
    check_tensor(op, "stats", stats, {in.B, K, N, 2}, {acc_dtype});
  } else {
    check_tensor(op, "stats", stats, {0}, {acc_dtype});
  }

  const Tensor rows = dense_channels(x);
  const Tensor saved = as_contiguous(stats);
  const Tensor grads[2] = {as_contiguous(grad_static), as_contiguous(grad_dynamic)};
  const Tensor grad_x = empty(x, {in.B, T, N, C}, in.dtype);
  // An input that is not there, or is an integer, has an empty gradient.
  const Tensor grad_index[2] = {
      in.gather ? empty(x, {0}, acc_dtype) : empty(x, {in.B, Ks}, acc_dtype),
      in.gather ? empty(x, {0}, acc_dtype) : empty(x, {in.B, Kd}, acc_dtype),
  };
  Tensor grad_norm[4];  // weight and bias of static, weight and bias of dynamic
  for (Tensor& grad : grad_norm) grad = norm ? empty(x, {C}, acc_dtype) : empty(x, {0}, in.dtype);
  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const std::vector<Sample<A>> samples = make_samples<A>(op, static_index, dynamic_index, in, aligned);
    const OptionalTensor* weights[2] = {&static_norm_weight, &dynamic_norm_weight};
    const SplitNorms<A> norms(norm, weights, nullptr);
    const SamplingBackward<E> backward(in, rows, samples, norms, saved, grads, grad_x);
    backward.run(0, in.B);
    if (!in.gather) {
      A* sums[2] = {mutable_data<A>(grad_index[0]), mutable_data<A>(grad_index[1])};
      backward.sum_indexes(0, in.B, sums);
    }
    if (norm) backward.sum_norms(grad_norm);
  });

  const auto norm_grad = [&](const OptionalTensor& like, int64_t row) {
    return norm ? converted(grad_norm[row], like->scalar_type()) : grad_norm[row];
  };
  return {grad_x,
          grad_index[0],
          grad_index[1],
          norm_grad(static_norm_weight, 0),
          norm_grad(static_norm_weight, 1),
          norm_grad(dynamic_norm_weight, 2),
          norm_grad(dynamic_norm_weight, 3)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("split_frames", IFDD_BOX(&split_frames));
  m.impl("split_frames_backward", IFDD_BOX(&split_frames_backward));
}

}  // namespace ifdd::cpu
