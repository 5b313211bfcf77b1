"""Definition of ``frame_tokens``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import pool_frames, pool_frames_backward


def _project(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, T, P, C) -> (B, T, S, P): the 1x1 convolution before its activation."""
    weight, bias = weight.to(pooled.dtype), bias.to(pooled.dtype)
    return torch.einsum("btpc,sc->btsp", pooled, weight) + bias[:, None]


def project_frames(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> Tensor:
    """Weight . pool(x) + bias, (B, T, S, pool * pool): what the activation takes."""
    return _project(pool_frames(x, height, width, pool), weight, bias)


def frame_tokens(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> Tensor:
    """GELU(weight . pool(x) + bias), flattened per frame to (B, T, S * pool * pool)."""
    return F.gelu(project_frames(x, weight, bias, height, width, pool)).flatten(2)


def frame_tokens_backward(
    grad_tokens: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; the activation's input is recomputed rather than stored."""
    pooled = pool_frames(x, height, width, pool)
    before = _project(pooled, weight, bias)
    inner = torch.ops.aten.gelu_backward(grad_tokens.to(before.dtype).reshape(before.shape), before)
    grad_weight = torch.einsum("btsp,btpc->sc", inner, pooled)
    grad_pooled = torch.einsum("btsp,sc->btpc", inner, weight.to(inner.dtype))
    grad_x = pool_frames_backward(grad_pooled, height, width, pool)
    return grad_x.to(x.dtype), grad_weight.to(weight.dtype), inner.sum((0, 1, 3)).to(bias.dtype)
