// ifdd::pooled_attention and its backward on the CPU: checks, the tables' layout and memory. The arithmetic is in
// kernels/attention.cpp; the definition, in plain torch, in ifdd_kernels/reference/pooled_attention.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "attention.h"
#include "boundary.h"
#include "buffer.h"
#include "kernels/sum_rows.h"

namespace ifdd::cpu {
namespace {

using namespace attention;
using Ints = torch::headeronly::IntHeaderOnlyArrayRef;

// Tables come in the order height, width, time; everything here is in the order of a grid, t, h, w.
constexpr int kAxis[3] = {1, 2, 0};
constexpr const char* kTable[3] = {"table_h", "table_w", "table_t"};

struct Inputs {
  AttentionSizes size;
  int64_t q_grid[3], k_grid[3];
  int64_t rows[3];  // of the tables
};

void check_grid(const char* op, const char* argument, const Ints& grid, int64_t (&out)[3]) {
  bool ok = grid.size() == 3;
  for (size_t axis = 0; ok && axis < 3; ++axis) {
    out[axis] = grid[axis];
    ok = grid[axis] >= 1;
  }
  if (!ok) fail(op, argument, "expected three positive integers (time, height, width), got ", shape_text(grid));
  check_extent(op, argument, {grid[0], grid[1], grid[2]});
  // Rows of the tables come from products of a query's and a key's side.
  for (int axis = 0; axis < 3; ++axis) {
    if (out[axis] > std::numeric_limits<int32_t>::max()) fail(op, argument, "expected 32-bit sides, got ", out[axis]);
  }
}

Inputs check_inputs(const char* op, const Tensor& query, const Tensor& key, const Tensor& value,
                    const Tensor* const (&tables)[3], const Ints& q_grid, const Ints& k_grid) {
  Inputs in{};
  AttentionSizes& s = in.size;
  s = check_query(op, query);
  check_grid(op, "q_grid", q_grid, in.q_grid);
  check_grid(op, "k_grid", k_grid, in.k_grid);
  s.Nk = 1 + in.k_grid[0] * in.k_grid[1] * in.k_grid[2];
  const ScalarType dtype = query.scalar_type();
  check_tensor(op, "query", query, {s.B, 1 + in.q_grid[0] * in.q_grid[1] * in.q_grid[2], s.h, s.d}, {dtype});
  check_tensor(op, "key", key, {s.B, s.Nk, s.h, s.d}, {dtype});
  check_tensor(op, "value", value, {s.B, s.Nk, s.h, s.d}, {dtype});
  for (int i = 0; i < 3; ++i) {
    const int axis = kAxis[i];
    in.rows[axis] = 2 * std::max(in.q_grid[axis], in.k_grid[axis]) - 1;
    check_parameter(op, kTable[i], *tables[i], {in.rows[axis], s.d}, dtype);
  }
  return in;
}

// Row of an axis' table for a (query, key) pair, see the reference: the sum of a number of the query and one of the
// key. So what is kept of all pairs is a number for each query and each key.
int64_t query_row(int64_t q, int64_t Q, int64_t K) { return K >= Q ? q * K / Q : q; }
int64_t key_row(int64_t k, int64_t Q, int64_t K) { return K >= Q ? K - 1 - k : (K - 1 - k) * Q / K; }

// The tables in the accumulation type, in the order of a grid, and where the rows of each pair start; nothing where
// there are no pairs.
template <class A>
class Tables {
 public:
  Tables(const Inputs& in, const Tensor* const (&tables)[3]) {
    const int64_t d = in.size.d, width = padded(d);
    int64_t first[3];
    count_ = 0;
    if (in.size.B * in.size.h == 0) return;
    for (int axis = 0; axis < 3; ++axis) {
      first[axis] = count_;
      count_ += in.rows[axis];
    }
    rows_.assign(count_ * width, A(0));
    for (int i = 0; i < 3; ++i) {
      const Tensor table = stable::contiguous(*tables[i]);
      dispatch(table.scalar_type(), [&](auto type) {
        const auto* source = data<decltype(type)>(table);
        for (int64_t r = 0; r < in.rows[kAxis[i]]; ++r) {
          for (int64_t c = 0; c < d; ++c) {
            rows_[(first[kAxis[i]] + r) * width + c] = static_cast<A>(load(source + r * d + c));
          }
        }
      });
    }
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t Q = in.q_grid[axis], K = in.k_grid[axis];
      query_part_[axis].resize(Q);
      key_part_[axis].resize(K);
      for (int64_t q = 0; q < Q; ++q) query_part_[axis][q] = (first[axis] + query_row(q, Q, K)) * width;
      for (int64_t k = 0; k < K; ++k) key_part_[axis][k] = key_row(k, Q, K) * width;
    }
  }

  Position<A> position(const Inputs& in) const {
    Position<A> position{};
    for (int axis = 0; axis < 3; ++axis) {
      position.q_grid[axis] = in.q_grid[axis];
      position.k_grid[axis] = in.k_grid[axis];
      position.query_part[axis] = query_part_[axis].data();
      position.key_part[axis] = key_part_[axis].data();
    }
    position.rows = rows_.data();
    position.row_count = count_;
    return position;
  }

 private:
  Buffer<A> rows_;
  std::vector<int64_t> query_part_[3], key_part_[3];
  int64_t count_;
};

std::tuple<Tensor, Tensor> pooled_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const Tensor& table_h, const Tensor& table_w, const Tensor& table_t,
                                            Ints q_grid, Ints k_grid, double scale) {
  const Tensor* const given[3] = {&table_h, &table_w, &table_t};
  const Inputs in = check_inputs("pooled_attention", query, key, value, given, q_grid, k_grid);
  const AttentionSizes& s = in.size;
  const Tensor q = dense(query), k = dense(key), v = dense(value);
  const Tensor out = empty(query, {s.B, s.Nq, s.h * s.d}, query.scalar_type());
  const Tensor log_sum = empty(query, {s.B, s.h, s.Nq}, accumulation_dtype(query.scalar_type()));
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Tables<A> tables(in, given);
    AttentionForward<T> call{};
    call.size = s;
    call.q = tokens_of<T>(q);
    call.k = tokens_of<T>(k);
    call.v = tokens_of<T>(v);
    call.position = tables.position(in);
    call.residual = Residual::query;
    call.scale = static_cast<A>(scale);
    call.out = mutable_data<T>(out);
    call.log_sum = mutable_data<A>(log_sum);
    forward(call);
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pooled_attention_backward(
    const Tensor& grad, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& table_h,
    const Tensor& table_w, const Tensor& table_t, const Tensor& out, const Tensor& log_sum, Ints q_grid, Ints k_grid,
    double scale) {
  const char* op = "pooled_attention_backward";
  const Tensor* const given[3] = {&table_h, &table_w, &table_t};
  const Inputs in = check_inputs(op, query, key, value, given, q_grid, k_grid);
  const AttentionSizes& s = in.size;
  const ScalarType dtype = query.scalar_type(), wide = accumulation_dtype(dtype);
  check_backward(op, grad, out, log_sum, s, dtype);
  const Tensor g = dense(grad), q = dense(query), k = dense(key), v = dense(value), l = stable::contiguous(log_sum);
  const Tensor grad_query = empty(query, {s.B, s.Nq, s.h, s.d}, query.scalar_type());
  const Tensor grad_key = empty(query, {s.B, s.Nk, s.h, s.d}, query.scalar_type());
  const Tensor grad_value = empty(query, {s.B, s.Nk, s.h, s.d}, query.scalar_type());
  Tensor grad_table[3];
  for (int i = 0; i < 3; ++i) grad_table[i] = empty(*given[i], {in.rows[kAxis[i]], s.d}, given[i]->scalar_type());
  const Tensor partial = new_partial(query, s);
  const int64_t units = s.B * s.h * chunks(s), width = padded(s.d);
  const int64_t row_count = in.rows[0] + in.rows[1] + in.rows[2];
  const Tensor table_partial = empty(query, {units, row_count, width}, wide);
  dispatch(dtype, [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    const Tables<A> tables(in, given);
    AttentionBackward<T> call{};
    call.size = s;
    call.grad = {data<T>(g), g.stride(0), g.stride(1), s.d};
    call.q = tokens_of<T>(q);
    call.k = tokens_of<T>(k);
    call.v = tokens_of<T>(v);
    call.position = tables.position(in);
    call.residual = Residual::query;
    call.scale = static_cast<A>(scale);
    call.log_sum = data<A>(l);
    call.grad_q = mutable_data<T>(grad_query);
    call.grad_k = mutable_data<T>(grad_key);
    call.grad_v = mutable_data<T>(grad_value);
    call.partial = partial.numel() > 0 ? mutable_data<A>(partial) : nullptr;
    call.table_partial = mutable_data<A>(table_partial);
    backward(call);

    const int64_t elements = row_count * width;
    Buffer<A> sums(elements);
    const auto sum = IFDD_SELECT(sum_rows<A>);
    stable::parallel_for(0, elements, grain(units), [&](int64_t begin, int64_t end) {
      sum(call.table_partial, units, elements, begin, end, sums.data());
    });
    for (int i = 0, axis; i < 3; ++i) {
      axis = kAxis[i];
      const A* first = sums.data() + (axis == 0 ? 0 : axis == 1 ? in.rows[0] : in.rows[0] + in.rows[1]) * width;
      dispatch(grad_table[i].scalar_type(), [&](auto table_type) {
        auto* target = mutable_data<decltype(table_type)>(grad_table[i]);
        for (int64_t r = 0; r < in.rows[axis]; ++r) {
          for (int64_t c = 0; c < s.d; ++c) store(target + r * s.d + c, first[r * width + c]);
        }
      });
    }
  });
  return {grad_query, grad_key, grad_value, grad_table[0], grad_table[1], grad_table[2]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("pooled_attention", IFDD_BOX(&pooled_attention));
  m.impl("pooled_attention_backward", IFDD_BOX(&pooled_attention_backward));
}

}  // namespace ifdd::cpu
