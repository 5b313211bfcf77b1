// The schemas of all ops, for programs without Python: a C++ program that loads this library finds the ops defined, as
// a package of AOTInductor needs them. In a Python process the package ifdd_kernels defines them, with the rules that
// autograd and compilers need; these are the same texts, which a test compares.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

namespace ifdd::cpu {
namespace {

constexpr const char* kSchemas[] = {
    "add_layer_norm(Tensor x, Tensor branch, Tensor weight, Tensor bias, Tensor? kept, float keep, float eps) "
    "-> (Tensor added, Tensor normed, Tensor mean, Tensor rstd)",
    "add_layer_norm_backward(Tensor? grad_added, Tensor grad_normed, Tensor added, Tensor weight, Tensor? "
    "kept, Tensor mean, Tensor rstd, float keep) -> (Tensor grad_x, Tensor grad_branch, Tensor grad_weight, "
    "Tensor grad_bias)",
    "augment_clips(Tensor strengths, Tensor frames, Tensor crop, Tensor flip, Tensor steps, int size) -> Tensor clips",
    "frame_correlation(Tensor tokens, float scale) -> Tensor correlation",
    "frame_correlation_backward(Tensor grad_correlation, Tensor tokens, float scale) -> Tensor grad_tokens",
    "frame_tokens(Tensor x, Tensor weight, Tensor bias, int height, int width, int pool) -> Tensor tokens",
    "frame_tokens_backward(Tensor grad_tokens, Tensor x, Tensor weight, Tensor bias, int height, int width, "
    "int pool) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    "gelu_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor out",
    "gelu_linear_backward(Tensor grad_out, Tensor x, Tensor weight) -> (Tensor grad_x, Tensor grad_weight, "
    "Tensor grad_bias)",
    "lifting_attention(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor out, Tensor log_sum)",
    "lifting_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor "
    "log_sum, float scale) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    "lifting_loss(Tensor residual, float weight, float beta, bool mean) -> Tensor loss",
    "lifting_loss_backward(Tensor grad_loss, Tensor residual, float weight, float beta, bool mean) -> Tensor "
    "grad_residual",
    "lifting_residual(Tensor x, Tensor approximation) -> Tensor residual",
    "lifting_residual_backward(Tensor grad_residual, Tensor x, Tensor approximation) -> (Tensor grad_x, Tensor"
    " grad_approximation)",
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor out",
    "linear_backward(Tensor grad_out, Tensor x, Tensor weight) -> (Tensor grad_x, Tensor grad_weight, Tensor "
    "grad_bias)",
    "max_pool_tokens(Tensor x, int[3] grid, int[3] stride) -> (Tensor out, Tensor rows)",
    "max_pool_tokens_backward(Tensor grad_out, Tensor rows, int[3] grid, int[3] stride) -> Tensor grad_x",
    "pool_tokens(Tensor qkv, Tensor? key_value, Tensor weight_q, Tensor weight_k, Tensor weight_v, Tensor "
    "norm_weight_q, Tensor norm_bias_q, Tensor norm_weight_k, Tensor norm_bias_k, Tensor norm_weight_v, Tensor"
    " norm_bias_v, int[3] grid, int[3] key_value_grid, int heads, int[3] stride_q, int[3] stride_kv, float "
    "eps) -> (Tensor query, Tensor key, Tensor value, Tensor stats_q, Tensor stats_k, Tensor stats_v)",
    "pool_tokens_backward(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor qkv, Tensor? "
    "key_value, Tensor weight_q, Tensor weight_k, Tensor weight_v, Tensor norm_weight_q, Tensor norm_weight_k,"
    " Tensor norm_weight_v, Tensor stats_q, Tensor stats_k, Tensor stats_v, int[3] grid, int[3] "
    "key_value_grid, int heads, int[3] stride_q, int[3] stride_kv) -> (Tensor grad_qkv, Tensor grad_key_value,"
    " Tensor grad_weight_q, Tensor grad_weight_k, Tensor grad_weight_v, Tensor grad_norm_weight_q, Tensor "
    "grad_norm_bias_q, Tensor grad_norm_weight_k, Tensor grad_norm_bias_k, Tensor grad_norm_weight_v, Tensor "
    "grad_norm_bias_v)",
    "pooled_attention(Tensor query, Tensor key, Tensor value, Tensor table_h, Tensor table_w, Tensor table_t, "
    "int[3] q_grid, int[3] k_grid, float scale) -> (Tensor out, Tensor log_sum)",
    "pooled_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor table_h, Tensor"
    " table_w, Tensor table_t, Tensor out, Tensor log_sum, int[3] q_grid, int[3] k_grid, float scale) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_table_h, Tensor grad_table_w, Tensor "
    "grad_table_t)",
    "split_frames(Tensor x, Tensor static_index, Tensor dynamic_index, Tensor? static_norm_weight, Tensor? "
    "static_norm_bias, Tensor? dynamic_norm_weight, Tensor? dynamic_norm_bias, float eps, bool aligned) -> "
    "(Tensor static_frames, Tensor dynamic_frames, Tensor stats)",
    "split_frames_backward(Tensor grad_static_frames, Tensor grad_dynamic_frames, Tensor x, Tensor "
    "static_index, Tensor dynamic_index, Tensor? static_norm_weight, Tensor? dynamic_norm_weight, Tensor "
    "stats, bool aligned) -> (Tensor grad_x, Tensor grad_static_index, Tensor grad_dynamic_index, Tensor "
    "grad_static_norm_weight, Tensor grad_static_norm_bias, Tensor grad_dynamic_norm_weight, Tensor "
    "grad_dynamic_norm_bias)",
    "split_index(Tensor x, Tensor token_weight, Tensor token_bias, Tensor static_weight, Tensor "
    "dynamic_weight, int height, int width, int pool, float reach) -> (Tensor static_index, Tensor "
    "dynamic_index, Tensor correlation)",
    "split_index_backward(Tensor grad_static_index, Tensor grad_dynamic_index, Tensor grad_correlation, Tensor"
    " x, Tensor token_weight, Tensor token_bias, Tensor static_weight, Tensor dynamic_weight, Tensor "
    "correlation, int height, int width, int pool, float reach) -> (Tensor grad_x, Tensor grad_token_weight, "
    "Tensor grad_token_bias, Tensor grad_static_weight, Tensor grad_dynamic_weight)",
    "static_dynamic_split(Tensor x, Tensor token_weight, Tensor token_bias, Tensor static_weight, Tensor "
    "dynamic_weight, Tensor? static_norm_weight, Tensor? static_norm_bias, Tensor? dynamic_norm_weight, "
    "Tensor? dynamic_norm_bias, int height, int width, int pool, float reach, float eps, bool aligned) -> "
    "(Tensor static_frames, Tensor dynamic_frames, Tensor static_index, Tensor dynamic_index, Tensor "
    "correlation, Tensor tokens, Tensor stats)",
    "static_dynamic_split_backward(Tensor grad_static_frames, Tensor grad_dynamic_frames, Tensor "
    "grad_static_index, Tensor grad_dynamic_index, Tensor grad_correlation, Tensor x, Tensor token_weight, "
    "Tensor token_bias, Tensor static_weight, Tensor dynamic_weight, Tensor? static_norm_weight, Tensor? "
    "dynamic_norm_weight, Tensor static_index, Tensor dynamic_index, Tensor correlation, Tensor tokens, Tensor"
    " stats, int height, int width, int pool, float reach, bool aligned) -> (Tensor grad_x, Tensor "
    "grad_token_weight, Tensor grad_token_bias, Tensor grad_static_weight, Tensor grad_dynamic_weight, Tensor "
    "grad_static_norm_weight, Tensor grad_static_norm_bias, Tensor grad_dynamic_norm_weight, Tensor "
    "grad_dynamic_norm_bias)",
    "topk_split_index(Tensor x, int height, int width, int pool, bool order_prior) -> (Tensor static_index, "
    "Tensor dynamic_index)",
    nullptr,
};

// PyTorch's Python bindings are in the process, so that Python defines the ops: a second definition is an error.
bool has_python() {
  void* const bindings = dlopen("libtorch_python.so", RTLD_LAZY | RTLD_NOLOAD);
  if (bindings == nullptr) return false;
  dlclose(bindings);
  return true;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ifdd, m) {
  if (has_python()) return;
  for (const char* const* schema = kSchemas; *schema != nullptr; ++schema) m.def(*schema);
}

}  // namespace ifdd::cpu

// The schemas, ended by a null pointer.
extern "C" __attribute__((visibility("default"))) const char* const* ifdd_schemas() { return ifdd::cpu::kSchemas; }
