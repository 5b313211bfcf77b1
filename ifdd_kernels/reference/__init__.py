"""The ops' definitions in plain PyTorch, in any floating dtype: what every kernel is compared with.

Each function has the signature of its op (``torch.ops.ifdd.NAME``). The forward definitions are
differentiable by PyTorch's own autograd, which is how the hand-derived ``NAME_backward`` are checked.
"""

from ifdd_kernels.reference.add_layer_norm import add_layer_norm, add_layer_norm_backward
from ifdd_kernels.reference.augment_clips import augment_clips, augment_pixels
from ifdd_kernels.reference.frame_correlation import frame_correlation, frame_correlation_backward
from ifdd_kernels.reference.frame_tokens import frame_tokens, frame_tokens_backward
from ifdd_kernels.reference.gelu_linear import gelu_linear, gelu_linear_backward
from ifdd_kernels.reference.lifting_attention import lifting_attention, lifting_attention_backward
from ifdd_kernels.reference.lifting_loss import lifting_loss, lifting_loss_backward
from ifdd_kernels.reference.lifting_residual import lifting_residual, lifting_residual_backward
from ifdd_kernels.reference.linear import linear, linear_backward
from ifdd_kernels.reference.max_pool_tokens import max_pool_tokens, max_pool_tokens_backward
from ifdd_kernels.reference.pool_tokens import pool_tokens, pool_tokens_backward
from ifdd_kernels.reference.pooled_attention import (
    attention_of_parts,
    pooled_attention,
    pooled_attention_backward,
)
from ifdd_kernels.reference.split_frames import split_frames, split_frames_backward
from ifdd_kernels.reference.split_index import split_index, split_index_backward
from ifdd_kernels.reference.static_dynamic_split import (
    static_dynamic_split,
    static_dynamic_split_backward,
)
from ifdd_kernels.reference.topk_split_index import topk_split_index

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "attention_of_parts",
    "augment_clips",
    "augment_pixels",
    "frame_correlation",
    "frame_correlation_backward",
    "frame_tokens",
    "frame_tokens_backward",
    "gelu_linear",
    "gelu_linear_backward",
    "lifting_attention",
    "lifting_attention_backward",
    "lifting_loss",
    "lifting_loss_backward",
    "lifting_residual",
    "lifting_residual_backward",
    "linear",
    "linear_backward",
    "max_pool_tokens",
    "max_pool_tokens_backward",
    "pool_tokens",
    "pool_tokens_backward",
    "pooled_attention",
    "pooled_attention_backward",
    "split_frames",
    "split_frames_backward",
    "split_index",
    "split_index_backward",
    "static_dynamic_split",
    "static_dynamic_split_backward",
    "topk_split_index",
]
