"""Fused kernels for lifting-scheme video networks, as autograd-compatible ``torch.ops.ifdd``.

Importing never builds anything and never touches a GPU. Without the native library the ops run on their
definitions in plain PyTorch; :func:`build_info` says what is missing and how to get it.
"""

from ifdd_kernels import _flops, _library, _products, _sharding, backends, reference
from ifdd_kernels._build_info import build_info
from ifdd_kernels._preferred import use_backend
from ifdd_kernels._version import __version__
from ifdd_kernels.grids import LiveTokens, live_tokens, pooled_grid
from ifdd_kernels.ops import (
    SplitIndex,
    StaticDynamicSplit,
    TopkIndex,
    add_layer_norm,
    augment_clips,
    frame_correlation,
    frame_tokens,
    gelu_linear,
    lifting_attention,
    lifting_loss,
    lifting_predict,
    lifting_residual,
    lifting_update,
    linear,
    max_pool_tokens,
    pool_tokens,
    pooled_attention,
    split_frames,
    split_index,
    static_dynamic_split,
    topk_split_index,
)
from ifdd_kernels.recording import record

# The schemas above come first: the library only adds kernels to ops that exist, FlopCounterMode counts them
# and DTensor splits them.
_library.load()
_products.connect()
_flops.register_all()
_sharding.register_all()

__all__ = [
    "LiveTokens",
    "SplitIndex",
    "StaticDynamicSplit",
    "TopkIndex",
    "__version__",
    "add_layer_norm",
    "augment_clips",
    "backends",
    "build_info",
    "frame_correlation",
    "frame_tokens",
    "gelu_linear",
    "lifting_attention",
    "lifting_loss",
    "lifting_predict",
    "lifting_residual",
    "lifting_update",
    "linear",
    "live_tokens",
    "max_pool_tokens",
    "pool_tokens",
    "pooled_attention",
    "pooled_grid",
    "record",
    "reference",
    "split_frames",
    "split_index",
    "static_dynamic_split",
    "topk_split_index",
    "use_backend",
]
