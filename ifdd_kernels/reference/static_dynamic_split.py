"""Definition of ``static_dynamic_split``: ``split_index``, then ``split_frames`` at its positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference.frame_tokens import project_frames
from ifdd_kernels.reference.split_frames import split_frames, split_frames_backward
from ifdd_kernels.reference.split_index import split_index, split_index_backward


def static_dynamic_split(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    height: int,
    width: int,
    pool: int,
    reach: float,
    eps: float,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both groups, both indexes, the correlation, the tokens before and behind their GELU, the statistics."""
    tokenizer = (token_weight, token_bias)
    found = split_index(x, *tokenizer, static_weight, dynamic_weight, height, width, pool, reach)
    norms = (static_norm_weight, static_norm_bias, dynamic_norm_weight, dynamic_norm_bias)
    static, dynamic, stats = split_frames(x, *found[:2], *norms, eps, aligned)
    before = project_frames(x, *tokenizer, height, width, pool).flatten(2)
    return static, dynamic, *found, torch.stack((before, F.gelu(before))), stats


def static_dynamic_split_backward(
    grad_static_frames: Tensor,
    grad_dynamic_frames: Tensor,
    grad_static_index: Tensor,
    grad_dynamic_index: Tensor,
    grad_correlation: Tensor,
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    static_norm_weight: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    static_index: Tensor,
    dynamic_index: Tensor,
    correlation: Tensor,
    tokens: Tensor,
    stats: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the indexes' four parameters and of the norms' four; recomputes the tokens."""
    norm_weights = (static_norm_weight, dynamic_norm_weight)
    from_frames, from_static, from_dynamic, *grad_norms = split_frames_backward(
        grad_static_frames, grad_dynamic_frames, x, static_index, dynamic_index, *norm_weights, stats, aligned
    )
    grad_x, *grad_parameters = split_index_backward(
        grad_static_index + from_static,
        grad_dynamic_index + from_dynamic,
        grad_correlation,
        x,
        token_weight,
        token_bias,
        static_weight,
        dynamic_weight,
        correlation,
        height,
        width,
        pool,
        reach,
    )
    return (
        from_frames + grad_x,
        grad_parameters[0],
        grad_parameters[1],
        grad_parameters[2],
        grad_parameters[3],
        grad_norms[0],
        grad_norms[1],
        grad_norms[2],
        grad_norms[3],
    )
