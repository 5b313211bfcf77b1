"""The ops: schema, shape rules, gradients and public function of each, one file per op."""

from ifdd_kernels.ops.add_layer_norm import add_layer_norm
from ifdd_kernels.ops.augment_clips import augment_clips
from ifdd_kernels.ops.frame_correlation import frame_correlation
from ifdd_kernels.ops.frame_tokens import frame_tokens
from ifdd_kernels.ops.gelu_linear import gelu_linear
from ifdd_kernels.ops.lifting_attention import lifting_attention
from ifdd_kernels.ops.lifting_loss import lifting_loss
from ifdd_kernels.ops.lifting_residual import lifting_residual
from ifdd_kernels.ops.lifting_steps import lifting_predict, lifting_update
from ifdd_kernels.ops.linear import linear
from ifdd_kernels.ops.max_pool_tokens import max_pool_tokens
from ifdd_kernels.ops.pool_tokens import pool_tokens
from ifdd_kernels.ops.pooled_attention import pooled_attention
from ifdd_kernels.ops.split_frames import split_frames
from ifdd_kernels.ops.split_index import SplitIndex, split_index
from ifdd_kernels.ops.static_dynamic_split import StaticDynamicSplit, static_dynamic_split
from ifdd_kernels.ops.topk_split_index import TopkIndex, topk_split_index

__all__ = [
    "SplitIndex",
    "StaticDynamicSplit",
    "TopkIndex",
    "add_layer_norm",
    "augment_clips",
    "frame_correlation",
    "frame_tokens",
    "gelu_linear",
    "lifting_attention",
    "lifting_loss",
    "lifting_predict",
    "lifting_residual",
    "lifting_update",
    "linear",
    "max_pool_tokens",
    "pool_tokens",
    "pooled_attention",
    "split_frames",
    "split_index",
    "static_dynamic_split",
    "topk_split_index",
]
