// ifdd::split_frames and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/split_frames.cpp; the definition, in plain torch, in ifdd_kernels/reference/split_frames.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "frames.h"

namespace ifdd::cpu {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Inputs {
  int64_t B;
  SplitSizes size;
  ScalarType dtype;
  bool gather;  // integer indexes
};

Inputs check_inputs(const char* op, const Tensor& x, const Tensor& static_index, const Tensor& dynamic_index) {
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
  return {B, size, dtype, gather};
}

// The tensors of both norms, or of none.
bool check_norms(const char* op, const Inputs& in,
                 std::initializer_list<std::pair<const char*, const OptionalTensor*>> norms) {
  const bool given = norms.begin()->second->has_value();
  for (const auto& [argument, tensor] : norms) {
    if (tensor->has_value() != given) {
      fail(op, argument, "expected all norm tensors or none, got ", tensor->has_value() ? "this one" : "None", " but ",
           norms.begin()->first, given ? " is given" : " is None");
    }
    if (given) check_parameter(op, argument, **tensor, {in.size.C}, in.dtype);
  }
  return given;
}

// Position of a fractional index, see the reference. A NaN index gives a NaN output frame.
template <class A>
Sample<A> interpolate(A index, int64_t T, bool aligned) {
  const A last = static_cast<A>(T - 1);
  const A scale = aligned ? A(1) : static_cast<A>(static_cast<double>(T) / static_cast<double>(T - 1));
  const A raw = aligned ? index : index * scale - A(0.5);
  const bool inside = raw > 0 && raw < last;
  const A position = raw != raw ? raw : inside ? raw : raw <= 0 ? A(0) : last;
  const int64_t first = inside ? static_cast<int64_t>(position) : position == last ? T - 1 : 0;
  return {first, std::min(first + 1, T - 1), position - static_cast<A>(first), inside ? scale : A(0)};
}

template <class A>
void fill_samples(const char* op, const char* argument, const Tensor& index, const Inputs& in, bool aligned,
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
                                    const Inputs& in, bool aligned) {
  std::vector<Sample<A>> samples(in.B * (in.size.Ks + in.size.Kd));
  fill_samples(op, "static_index", static_index, in, aligned, 0, samples);
  fill_samples(op, "dynamic_index", dynamic_index, in, aligned, in.size.Ks, samples);
  return samples;
}

// Which output frames read which input frame: an average of two, gathered without a search per position.
template <class A>
struct Readers {
  std::vector<Reader<A>> all;
  std::vector<int64_t> begin;

  Readers(const std::vector<Sample<A>>& samples, const Inputs& in) {
    const int64_t T = in.size.T, K = in.size.Ks + in.size.Kd;
    all.reserve(2 * samples.size());
    begin.reserve(in.B * T + 1);
    for (int64_t frame = 0; frame < in.B * T; ++frame) {
      begin.push_back(static_cast<int64_t>(all.size()));
      for (int64_t k = 0; k < K; ++k) {
        const Sample<A>& s = samples[frame / T * K + k];
        A factor = 0;
        if (s.first == frame % T) factor += 1 - s.fraction;
        if (s.second == frame % T) factor += s.fraction;
        if (factor != 0) all.push_back({k, factor});
      }
    }
    begin.push_back(static_cast<int64_t>(all.size()));
  }
};

std::tuple<Tensor, Tensor, Tensor> split_frames(const Tensor& x, const Tensor& static_index,
                                                const Tensor& dynamic_index, const OptionalTensor& static_weight,
                                                const OptionalTensor& static_bias, const OptionalTensor& dynamic_weight,
                                                const OptionalTensor& dynamic_bias, double eps, bool aligned) {
  const char* op = "split_frames";
  const Inputs in = check_inputs(op, x, static_index, dynamic_index);
  const bool norm = check_norms(op, in,
                                {{"static_weight", &static_weight},
                                 {"static_bias", &static_bias},
                                 {"dynamic_weight", &dynamic_weight},
                                 {"dynamic_bias", &dynamic_bias}});
  if (norm && !(eps > 0)) fail(op, "eps", "expected a positive number, got ", eps);
  const auto [T, N, C, Ks, Kd] = in.size;
  const int64_t K = Ks + Kd;
  const Tensor rows = dense_channels(x);
  const Tensor frames[2] = {empty(x, {in.B, Ks, N, C}, in.dtype), empty(x, {in.B, Kd, N, C}, in.dtype)};
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  const Tensor stats = norm ? empty(x, {in.B, K, N, 2}, acc_dtype) : empty(x, {0}, acc_dtype);
  Tensor weight[2], bias[2];
  if (norm) {
    weight[0] = accumulable(*static_weight);
    weight[1] = accumulable(*dynamic_weight);
    bias[0] = accumulable(*static_bias);
    bias[1] = accumulable(*dynamic_bias);
  }
  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const std::vector<Sample<A>> samples = make_samples<A>(op, static_index, dynamic_index, in, aligned);
    SplitForward<E> call{};
    call.size = in.size;
    call.x = frames_of<E>(rows);
    call.gather = in.gather;
    call.samples = samples.data();
    for (int group = 0; group < 2; ++group) {
      call.weight[group] = norm ? data<A>(weight[group]) : nullptr;
      call.bias[group] = norm ? data<A>(bias[group]) : nullptr;
      call.frames[group] = mutable_data<E>(frames[group]);
    }
    call.eps = static_cast<A>(eps);
    call.stats = norm ? mutable_data<A>(stats) : nullptr;
    const auto kernel = IFDD_SELECT(split_forward<E>);
    const int64_t grain = std::max<int64_t>(1, 32768 / (K * C));
    stable::parallel_for(0, in.B * N, grain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  });
  return {frames[0], frames[1], stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> split_frames_backward(
    const Tensor& grad_static, const Tensor& grad_dynamic, const Tensor& x, const Tensor& static_index,
    const Tensor& dynamic_index, const OptionalTensor& static_weight, const OptionalTensor& dynamic_weight,
    const Tensor& stats, bool aligned) {
  const char* op = "split_frames_backward";
  const Inputs in = check_inputs(op, x, static_index, dynamic_index);
  const auto [T, N, C, Ks, Kd] = in.size;
  const int64_t K = Ks + Kd;
  check_tensor(op, "grad_static", grad_static, {in.B, Ks, N, C}, {in.dtype});
  check_tensor(op, "grad_dynamic", grad_dynamic, {in.B, Kd, N, C}, {in.dtype});
  const bool norm = check_norms(op, in, {{"static_weight", &static_weight}, {"dynamic_weight", &dynamic_weight}});
  const ScalarType acc_dtype = accumulation_dtype(in.dtype);
  if (norm) {
    check_tensor(op, "stats", stats, {in.B, K, N, 2}, {acc_dtype});
  } else {
    check_tensor(op, "stats", stats, {0}, {acc_dtype});
  }

  const Tensor rows = dense_channels(x);
  const Tensor saved = as_contiguous(stats);
  const Tensor grads[2] = {as_contiguous(grad_static), as_contiguous(grad_dynamic)};
  Tensor weight[2];
  if (norm) {
    weight[0] = accumulable(*static_weight);
    weight[1] = accumulable(*dynamic_weight);
  }
  const Tensor grad_x = empty(x, {in.B, T, N, C}, in.dtype);
  // An input that is not there, or is an integer, has an empty gradient.
  const Tensor grad_index[2] = {
      in.gather ? empty(x, {0}, acc_dtype) : empty(x, {in.B, Ks}, acc_dtype),
      in.gather ? empty(x, {0}, acc_dtype) : empty(x, {in.B, Kd}, acc_dtype),
  };
  Tensor grad_norm[4];  // weight and bias of static, weight and bias of dynamic
  for (Tensor& grad : grad_norm) grad = norm ? empty(x, {C}, acc_dtype) : empty(x, {0}, in.dtype);
  // The partial sums of each chunk.
  const int64_t parts = chunks(in.size);
  const Tensor index_partial = empty(x, {in.gather ? 0 : in.B * parts, K}, acc_dtype);
  const Tensor weight_partial = empty(x, {norm ? in.B * parts : 0, 4, C}, acc_dtype);

  dispatch(in.dtype, [&](auto type) {
    using E = decltype(type);
    using A = acc_t<E>;
    const std::vector<Sample<A>> samples = make_samples<A>(op, static_index, dynamic_index, in, aligned);
    const Readers<A> readers(samples, in);
    SplitBackward<E> call{};
    call.size = in.size;
    call.x = frames_of<E>(rows);
    call.gather = in.gather;
    call.samples = samples.data();
    call.readers = readers.all.data();
    call.reader_begin = readers.begin.data();
    for (int group = 0; group < 2; ++group) {
      call.weight[group] = norm ? data<A>(weight[group]) : nullptr;
      call.grad_frames[group] = data<E>(grads[group]);
    }
    call.stats = norm ? data<A>(saved) : nullptr;
    call.grad_x = mutable_data<E>(grad_x);
    call.index_partial = in.gather ? nullptr : mutable_data<A>(index_partial);
    call.weight_partial = norm ? mutable_data<A>(weight_partial) : nullptr;
    const auto kernel = IFDD_SELECT(split_backward<E>);
    stable::parallel_for(0, in.B * parts, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> scratch(split_backward_scratch(in.size));
      kernel(call, begin, end, scratch.data());
    });
    const auto sum = IFDD_SELECT(sum_rows<A>);
    if (!in.gather) {
      for (int64_t b = 0; b < in.B; ++b) {
        const A* partial = data<A>(index_partial) + b * parts * K;
        sum(partial, parts, K, 0, Ks, mutable_data<A>(grad_index[0]) + b * Ks);
        sum(partial + Ks, parts, K, 0, Kd, mutable_data<A>(grad_index[1]) + b * Kd);
      }
    }
    if (norm) {
      constexpr int64_t kBlock = 256;
      const int64_t blocks = (C + kBlock - 1) / kBlock;
      stable::parallel_for(0, 4 * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t row = i / blocks, first = i % blocks * kBlock;
          sum(data<A>(weight_partial) + row * C, in.B * parts, 4 * C, first, std::min(C, first + kBlock),
              mutable_data<A>(grad_norm[row]));
        }
      });
    }
  });

  const auto norm_grad = [&](const OptionalTensor& like, int64_t row) {
    return norm ? converted(grad_norm[row], like->scalar_type()) : grad_norm[row];
  };
  return {grad_x,
          grad_index[0],
          grad_index[1],
          norm_grad(static_weight, 0),
          norm_grad(static_weight, 1),
          norm_grad(dynamic_weight, 2),
          norm_grad(dynamic_weight, 3)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("split_frames", TORCH_BOX(&split_frames));
  m.impl("split_frames_backward", TORCH_BOX(&split_frames_backward));
}

}  // namespace ifdd::cpu
