// Checks of pool_tokens' arguments that are the same on every device.
#pragma once

#include <optional>
#include <vector>

#include "check.h"

namespace ifdd {

using Triple = std::vector<int64_t>;  // time, height, width

// Checks a tensor of three axes as (B, 1 + T*H*W, parts * heads * d) with a checked grid; returns d.
inline int64_t check_packed(const char* op, const char* argument, const Tensor& tensor, int64_t parts,
                            const Triple& grid, int64_t heads) {
  const int64_t tokens = tensor.size(1), packed = tensor.size(2);
  // Each factor is compared before it is multiplied: the product cannot overflow.
  const bool fits = grid[0] < tokens && grid[1] < tokens && grid[2] < tokens && grid[0] <= (tokens - 1) / grid[1] &&
                    grid[0] * grid[1] <= (tokens - 1) / grid[2] && grid[0] * grid[1] * grid[2] == tokens - 1;
  if (!fits) {
    fail(op, argument, "expected 1 + T*H*W tokens for grid ", shape_text(grid), ", got shape ",
         shape_text(tensor.sizes()));
  }
  if (heads < 1 || heads > packed) {
    fail(op, "heads", "expected a positive number of heads for ", argument, " of shape ", shape_text(tensor.sizes()),
         ", got ", heads);
  }
  if (packed % (parts * heads) != 0) {
    fail(op, argument, "expected a last axis of ", parts, " * heads * d with heads = ", heads, ", got shape ",
         shape_text(tensor.sizes()));
  }
  return packed / (parts * heads);
}

// Checks the tokens, grids and strides of a call; returns d. check_rows(argument, tensor) checks device and dtype of a
// tensor, and that it has three axes.
template <class CheckRows>
int64_t check_tokens(const char* op, const Tensor& qkv, const std::optional<Tensor>& key_value, const Triple& grid,
                     const Triple& key_value_grid, int64_t heads, const Triple& stride_q, const Triple& stride_kv,
                     const CheckRows& check_rows) {
  check_triple(op, "grid", grid);
  check_triple(op, "key_value_grid", key_value_grid);
  check_triple(op, "stride_q", stride_q);
  check_triple(op, "stride_kv", stride_kv);
  check_rows("qkv", qkv);
  const int64_t d = check_packed(op, "qkv", qkv, key_value ? 1 : 3, grid, heads);
  if (key_value) {
    check_rows("key_value", *key_value);
    check_packed(op, "key_value", *key_value, 2, key_value_grid, heads);
    check_layout(op, "key_value", *key_value, {qkv.size(0), -1, 2 * heads * d}, {qkv.scalar_type()});
  } else if (key_value_grid != grid) {
    fail(op, "key_value_grid", "expected that of qkv, ", shape_text(grid), ", as key_value is not given, got ",
         shape_text(key_value_grid));
  }
  return d;
}

}  // namespace ifdd
