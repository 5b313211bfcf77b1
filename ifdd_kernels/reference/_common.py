"""Pieces that several reference definitions share."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are carried in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def layer_norm_backward(
    grad: Tensor, normalised: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y = n * weight + bias, n = (u - mean) * rstd, with respect to u, weight and bias.

    ``grad`` and ``normalised`` are (..., C), ``rstd`` is (..., 1), ``weight`` is (C,).

    du = rstd * (g - mean_C(g) - n * mean_C(g * n)) with g = grad * weight.
    """
    scaled = grad * weight
    inner = scaled - scaled.mean(-1, keepdim=True) - normalised * (scaled * normalised).mean(-1, keepdim=True)
    leading = tuple(range(grad.dim() - 1))
    return rstd * inner, (grad * normalised).sum(leading), grad.sum(leading)


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over the last axis, both (..., 1)."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return mean, (variance + eps).rsqrt()


def pooling_matrix(size: int, out: int, like: Tensor) -> Tensor:
    """Adaptive average pooling of one axis as an (out, size) matrix.

    Row i averages the cells floor(i * size / out) .. ceil((i + 1) * size / out) - 1. It is built on the
    device of ``like``, without a host table, so that the ops stay CUDA-graph safe.
    """
    row = torch.arange(out, device=like.device)[:, None]
    cell = torch.arange(size, device=like.device)[None, :]
    start = row * size // out
    stop = -((row + 1) * size // -out)
    inside = ((cell >= start) & (cell < stop)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def pool_frames(x: Tensor, height: int, width: int, pool: int) -> Tensor:
    """(B, T, H*W, C) -> (B, T, pool*pool, C) in the accumulator dtype."""
    batch, frames, _, channels = x.shape
    x = x.to(accumulator(x.dtype))
    if (height, width) == (pool, pool):
        return x
    rows, columns = pooling_matrix(height, pool, x), pooling_matrix(width, pool, x)
    cells = x.reshape(batch, frames, height, width, channels)
    pooled = torch.einsum("sh,bthwc,uw->btsuc", rows, cells, columns)
    return pooled.reshape(batch, frames, pool * pool, channels)


def pool_frames_backward(grad: Tensor, height: int, width: int, pool: int) -> Tensor:
    """(B, T, pool*pool, C) -> (B, T, H*W, C): the transpose of :func:`pool_frames`."""
    batch, frames, _, channels = grad.shape
    if (height, width) == (pool, pool):
        return grad
    rows, columns = pooling_matrix(height, pool, grad), pooling_matrix(width, pool, grad)
    cells = grad.reshape(batch, frames, pool, pool, channels)
    spread = torch.einsum("sh,btsuc,uw->bthwc", rows, cells, columns)
    return spread.reshape(batch, frames, height * width, channels)
