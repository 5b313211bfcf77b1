// ifdd::lifting_attention and its backward on the CPU: checks and memory. The arithmetic is in kernels/attention.cpp;
// the definition, in plain torch, in ifdd_kernels/reference/lifting_attention.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "attention.h"
#include "boundary.h"

namespace ifdd::cpu {
namespace {

using namespace attention;

AttentionSizes check_inputs(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  AttentionSizes s = check_query(op, query);
  s.Nk = s.Nq;
  check_tensor(op, "key", key, {s.B, s.Nk, s.h, s.d}, {query.scalar_type()});
  check_tensor(op, "value", value, {s.B, s.Nk, s.h, s.d}, {query.scalar_type()});
  return s;
}

std::tuple<Tensor, Tensor> lifting_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                             double scale) {
  const AttentionSizes s = check_inputs("lifting_attention", query, key, value);
  const Tensor q = dense(query), k = dense(key), v = dense(value);
  const Tensor out = empty(query, {s.B, s.Nq, s.h * s.d}, query.scalar_type());
  const Tensor log_sum = empty(query, {s.B, s.h, s.Nq}, accumulation_dtype(query.scalar_type()));
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    AttentionForward<T> call{};
    call.size = s;
    call.q = tokens_of<T>(q);
    call.k = tokens_of<T>(k);
    call.v = tokens_of<T>(v);
    call.residual = Residual::value;
    call.scale = static_cast<A>(scale);
    call.out = mutable_data<T>(out);
    call.log_sum = mutable_data<A>(log_sum);
    forward(call);
  });
  return {out, log_sum};
}

std::tuple<Tensor, Tensor, Tensor> lifting_attention_backward(const Tensor& grad, const Tensor& query,
                                                              const Tensor& key, const Tensor& value, const Tensor& out,
                                                              const Tensor& log_sum, double scale) {
  const char* op = "lifting_attention_backward";
  const AttentionSizes s = check_inputs(op, query, key, value);
  check_backward(op, grad, out, log_sum, s, query.scalar_type());
  const Tensor g = dense(grad), q = dense(query), k = dense(key), v = dense(value), l = stable::contiguous(log_sum);
  const Tensor grad_query = empty(query, {s.B, s.Nq, s.h, s.d}, query.scalar_type());
  const Tensor grad_key = empty(query, {s.B, s.Nk, s.h, s.d}, query.scalar_type());
  const Tensor grad_value = empty(query, {s.B, s.Nk, s.h, s.d}, query.scalar_type());
  const Tensor partial = new_partial(query, s);
  dispatch(query.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using A = acc_t<T>;
    AttentionBackward<T> call{};
    call.size = s;
    call.grad = {data<T>(g), g.stride(0), g.stride(1), s.d};
    call.q = tokens_of<T>(q);
    call.k = tokens_of<T>(k);
    call.v = tokens_of<T>(v);
    call.residual = Residual::value;
    call.scale = static_cast<A>(scale);
    call.log_sum = data<A>(l);
    call.grad_q = mutable_data<T>(grad_query);
    call.grad_k = mutable_data<T>(grad_key);
    call.grad_v = mutable_data<T>(grad_value);
    call.partial = partial.numel() > 0 ? mutable_data<A>(partial) : nullptr;
    backward(call);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ifdd, CPU, m) {
  m.impl("lifting_attention", IFDD_BOX(&lifting_attention));
  m.impl("lifting_attention_backward", IFDD_BOX(&lifting_attention_backward));
}

}  // namespace ifdd::cpu
