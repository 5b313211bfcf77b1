// ifdd::max_pool_tokens and its backward on the CPU: checks, memory and threads. The arithmetic is in
// kernels/max_pool_tokens.cpp; the definition, in plain torch, in ifdd_kernels/reference/max_pool_tokens.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "boundary.h"
#include "floating.h"
#include "kernels/max_pool_tokens.h"

namespace ifdd::cpu {
namespace {

using Triple = std::vector<int64_t>;

PoolAxis axis(int64_t in, int64_t given) {
  // From twice the axis on the one window holds every cell.
  const int64_t stride = std::min(given, 2 * in), kernel = stride > 1 ? stride + 1 : 1;
  return {in, (in - 1) / stride + 1, stride, kernel, kernel / 2};
}

MaxPool sizes(const char* op, const Triple& grid, const Triple& stride, int64_t channels) {
  check_triple(op, "grid", grid);
  check_triple(op, "stride", stride);
  int64_t cells = 1;
  for (const int64_t size : grid) {
    if (size > (std::numeric_limits<int32_t>::max() - 1) / cells) {
      fail(op, "grid", "expected fewer than 2**31 tokens, got ", shape_text(grid));
    }
    cells *= size;
  }
  return {axis(grid[0], stride[0]), axis(grid[1], stride[1]), axis(grid[2], stride[2]), channels};
}

// Cells that are worth a thread.
int64_t grain(const MaxPool& size) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, size.C)); }

std::tuple<Tensor, Tensor> max_pool_tokens(const Tensor& x, const Triple& grid, const Triple& stride) {
  const char* op = "max_pool_tokens";
  check_floating(op, "x", x, {-1, -1, -1});
  const MaxPool size = sizes(op, grid, stride, x.size(2));
  check_floating(op, "x", x, {-1, 1 + size.in_cells(), -1});
  const int64_t B = x.size(0), cells = size.out_cells();
  const Tensor in = x.stride(2) == 1 || x.size(2) == 1 ? x : stable::contiguous(x);
  const Tensor out = empty(x, {B, 1 + cells, size.C}, x.scalar_type());
  const Tensor rows = empty(x, {B, cells, size.C}, ScalarType::Int);
  dispatch(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = IFDD_SELECT(max_pool_tokens<T>);
    stable::parallel_for(0, B * cells, grain(size), [&](int64_t begin, int64_t end) {
      kernel(size, data<T>(in), in.stride(0), in.stride(1), begin, end, mutable_data<T>(out),
             mutable_data<int32_t>(rows));
    });
  });
  return {out, rows};
}

Tensor max_pool_tokens_backward(const Tensor& grad, const Tensor& rows, const Triple& grid, const Triple& stride) {
  const char* op = "max_pool_tokens_backward";
  check_floating(op, "grad_out", grad, {-1, -1, -1});
  const MaxPool size = sizes(op, grid, stride, grad.size(2));
  const int64_t B = grad.size(0), cells = size.out_cells();
  check_floating(op, "grad_out", grad, {B, 1 + cells, size.C});
  check_tensor(op, "rows", rows, {B, cells, size.C}, {ScalarType::Int});
  check_extent(op, "grid", {B, 1 + size.in_cells(), size.C});
  const Tensor g = stable::contiguous(grad), from = stable::contiguous(rows);
  const Tensor grad_x = empty(grad, {B, 1 + size.in_cells(), size.C}, grad.scalar_type());
  dispatch(grad.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto kernel = IFDD_SELECT(max_pool_tokens_backward<T>);
    stable::parallel_for(0, B * size.in_cells(), grain(size), [&](int64_t begin, int64_t end) {
      kernel(size, data<T>(g), data<int32_t>(from), begin, end, mutable_data<T>(grad_x));
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("max_pool_tokens", IFDD_BOX(&max_pool_tokens));
  m.impl("max_pool_tokens_backward", IFDD_BOX(&max_pool_tokens_backward));
}

}  // namespace ifdd::cpu
