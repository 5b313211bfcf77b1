// Linear layers of 16-bit tokens through float32 products: blocks of rows are widened in the cache, multiplied by the
// float32 library and rounded once. On many CPUs that is faster than PyTorch's 16-bit products (float16: by orders of
// magnitude); choice.h knows where.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "choice.h"
#include "floating.h"
#include "kernels/linear.h"
#include "kernels/sum_rows.h"

namespace ifdd::cpu {

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

// Rows of (..., K), also where K is 0.
inline int64_t leading(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis) rows *= x.size(axis);
  return rows;
}

inline std::vector<int64_t> output_shape(const Tensor& x, int64_t M) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = M;
  return shape;
}

inline void check_linear(const char* op, const Tensor& x, const Tensor& weight) {
  check_device(op, "x", x);
  check_dtype(op, "x", x, {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half});
  check_parameter(op, "weight", weight, {-1, -1}, x.scalar_type());
  if (x.dim() < 2 || x.size(x.dim() - 1) != weight.size(1)) {
    fail(op, "x", "expected shape (..., ", weight.size(1), ") with at least two axes, got ", shape_text(x.sizes()));
  }
}

inline void check_linear_grad(const char* op, const Tensor& grad, const Tensor& x, const Tensor& weight) {
  check_device(op, "grad_out", grad);
  check_dtype(op, "grad_out", grad, {x.scalar_type()});
  const std::vector<int64_t> expected = output_shape(x, weight.size(0));
  if (!std::equal(grad.sizes().begin(), grad.sizes().end(), expected.begin(), expected.end())) {
    fail(op, "grad_out", "expected the shape of x ", shape_text(x.sizes()), " with a last axis of ", weight.size(0),
         ", got ", shape_text(grad.sizes()));
  }
}

// Whether the products are better computed in float32.
inline bool widened(const Tensor& x, const Tensor& weight) {
  return x.numel() > 0 && weight.size(0) > 0 && through_float32(x.scalar_type());
}

template <size_t count>
Tensor call_operator(const char* name, const char* overload, std::array<StableIValue, count>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a b, matrices.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  call_operator("aten::mm", "out", stack);
}

// out += a b, matrices.
inline void multiply_add(const Tensor& a, const Tensor& b, const Tensor& out) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1, 1));
}

// y = W x + b by PyTorch's library, in memory of its own: aten::linear returns a view of a matrix, which autograd
// refuses to change in place.
inline Tensor library_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const ScalarType dtype = x.scalar_type();
  const Tensor out = empty(x, output_shape(x, weight.size(0)), dtype);
  if (out.numel() == 0) return out;
  const int64_t rows = leading(x);
  const Tensor in = stable::reshape(x, {rows, weight.size(1)}), out_rows = stable::reshape(out, {rows, weight.size(0)}),
               columns = stable::transpose(converted(weight, dtype), 0, 1);
  if (bias) {
    const Tensor offset = converted(*bias, dtype);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out_rows.get(), offset.get(), in.get(), columns.get(), 1, 1));
  } else {
    multiply(in, columns, out_rows);
  }
  return out;
}

// Gradients of x, weight and bias by PyTorch's library. differentiate(grad) multiplies the gradient of the layer's
// argument, in place, and returns that argument again.
template <class Differentiate>
std::tuple<Tensor, Tensor, Tensor> library_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                           const Differentiate& differentiate) {
  const int64_t rows = leading(x);
  const Tensor grad_rows = stable::reshape(grad, {rows, weight.size(0)});
  const Tensor grad_x = stable::matmul(grad_rows, converted(weight, x.scalar_type()));
  const Tensor argument = stable::reshape(differentiate(grad_x), {rows, weight.size(1)});
  const Tensor grad_weight = stable::matmul(stable::transpose(grad_rows, 0, 1), argument);
  const std::array<int64_t, 1> over_rows{0};
  const Tensor grad_bias = stable::sum(grad_rows, torch::headeronly::IntHeaderOnlyArrayRef(over_rows.data(), 1), false,
                                       accumulation_dtype(x.scalar_type()));
  return {stable::reshape(grad_x, x.sizes()), converted(grad_weight, weight.scalar_type()),
          converted(grad_bias, weight.scalar_type())};
}

// Rows of a partial sum of the bias's gradient.
constexpr int64_t kSumRows = 64;

// Rows of the blocks, all but equal, that have so many columns in all: large beside what the library does once a
// product (it packs the weight) and small beside the tokens.
inline int64_t block_rows(int64_t rows, int64_t columns) {
  constexpr int64_t kElements = 1 << 19, kLeast = 512;
  const int64_t most = std::max(kLeast, kElements / columns), blocks = (rows + most - 1) / most;
  return std::min(rows, (rows + blocks * kSumRows - 1) / (blocks * kSumRows) * kSumRows);
}

inline int64_t grain_rows(int64_t columns) { return std::max<int64_t>(1, kGrain / columns); }

inline Tensor zeros(const Tensor& like, int64_t count) {
  Tensor out = empty(like, {count}, ScalarType::Float);
  return stable::zero_(out);
}

// The first `rows` rows of a buffer.
inline Tensor first_rows(Tensor buffer, int64_t rows) {
  return rows == buffer.size(0) ? buffer : stable::narrow(buffer, 0, 0, rows);
}

inline Tensor floats(const Tensor& like, int64_t rows, int64_t columns) {
  return empty(like, {rows, columns}, ScalarType::Float);
}

template <class F>
auto dispatch_16_bits(ScalarType dtype, const F& f) {
  return dtype == ScalarType::Half ? f(fp16{}) : f(bf16{});
}

// y = W a(x) + b of tokens of T, not empty. activate(from, count, to): a of elements of x, in float32.
template <class T, class Activate>
Tensor wide_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Activate& activate) {
  const int64_t rows = leading(x), K = weight.size(1), M = weight.size(0), block = block_rows(rows, K + M);
  const Tensor in = as_contiguous(x), columns = stable::transpose(converted(weight, ScalarType::Float), 0, 1);
  const Tensor offset = bias ? as_contiguous(converted(*bias, ScalarType::Float)) : zeros(x, M);
  const Tensor wide = floats(x, block, K), product = floats(x, block, M),
               out = empty(x, output_shape(x, M), x.scalar_type());
  const auto finish_rows = IFDD_SELECT(finish<T>);
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    stable::parallel_for(0, count * K, kGrain, [&](int64_t begin, int64_t end) {
      activate(data<T>(in) + first * K + begin, end - begin, mutable_data<float>(wide) + begin);
    });
    multiply(first_rows(wide, count), columns, first_rows(product, count));
    stable::parallel_for(0, count, grain_rows(M), [&](int64_t begin, int64_t end) {
      finish_rows(data<float>(product) + begin * M, end - begin, M, data<float>(offset),
                  mutable_data<T>(out) + (first + begin) * M);
    });
  }
  return out;
}

// Gradients of x, weight and bias. differentiate(from, count, to, grad): a of elements of x, and the gradient of a
// times its derivative, in place.
template <class T, class Differentiate>
std::tuple<Tensor, Tensor, Tensor> wide_linear_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                        const Differentiate& differentiate) {
  const int64_t rows = leading(x), K = weight.size(1), M = weight.size(0), block = block_rows(rows, K + M);
  const Tensor in = as_contiguous(x), grad_out = as_contiguous(grad), matrix = converted(weight, ScalarType::Float);
  const Tensor wide = floats(x, block, K), wide_grad = floats(x, block, M), product = floats(x, block, K);
  const Tensor grad_x = empty(x, x.sizes(), x.scalar_type()), grad_weight = floats(x, M, K);
  const int64_t sums = (rows + kSumRows - 1) / kSumRows;
  const Tensor partial = floats(x, sums, M), grad_bias = empty(x, {M}, ScalarType::Float);
  const auto widen_rows = IFDD_SELECT(widen_and_sum<T>);
  const auto sum = IFDD_SELECT(sum_rows<float>);
  const auto round_elements = IFDD_SELECT(round_all<T>);
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = std::min(block, rows - first);
    const Tensor g = first_rows(wide_grad, count), p = first_rows(product, count);
    stable::parallel_for(
        0, (count + kSumRows - 1) / kSumRows, grain_rows(kSumRows * M), [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i * kSumRows;
            widen_rows(data<T>(grad_out) + (first + row) * M, std::min(kSumRows, count - row), M,
                       mutable_data<float>(g) + row * M, mutable_data<float>(partial) + (first + row) / kSumRows * M);
          }
        });
    multiply(g, matrix, p);
    stable::parallel_for(0, count * K, kGrain, [&](int64_t begin, int64_t end) {
      const int64_t from = first * K + begin;
      float* products = mutable_data<float>(p) + begin;
      differentiate(data<T>(in) + from, end - begin, mutable_data<float>(wide) + begin, products);
      round_elements(products, end - begin, mutable_data<T>(grad_x) + from);
    });
    const Tensor columns = stable::transpose(g, 0, 1), argument = first_rows(wide, count);
    first == 0 ? multiply(columns, argument, grad_weight) : multiply_add(columns, argument, grad_weight);
  }
  stable::parallel_for(0, M, grain_rows(sums), [&](int64_t begin, int64_t end) {
    sum(data<float>(partial), sums, M, begin, end, mutable_data<float>(grad_bias));
  });
  return {grad_x, converted(grad_weight, weight.scalar_type()), converted(grad_bias, weight.scalar_type())};
}

}  // namespace ifdd::cpu
