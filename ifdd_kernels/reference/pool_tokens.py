"""Definition of ``pool_tokens``: depthwise 3x3x3 convolution + LayerNorm of q, k and v."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.grids import pooled_grid
from ifdd_kernels.reference._common import accumulator, layer_norm_backward, moments

Triple = Sequence[int]


def _volume(tokens: Tensor, grid: Triple) -> Tensor:
    """(B, 1 + T*H*W, h, d) -> (B*h, d, T, H, W), the class token left out."""
    batch, _, heads, channels = tokens.shape
    body = tokens[:, 1:].reshape(batch, *grid, heads, channels)
    return body.permute(0, 4, 5, 1, 2, 3).reshape(batch * heads, channels, *grid)


def _rows(volume: Tensor, batch: int) -> Tensor:
    """(B*h, d, T, H, W) -> (B, T*H*W, h, d): the inverse of :func:`_volume`."""
    heads = volume.shape[0] // batch if batch else 1
    return volume.reshape(batch, heads, *volume.shape[1:]).flatten(3).permute(0, 3, 1, 2)


def _convolve(tokens: Tensor, weight: Tensor, grid: Triple, stride: Triple) -> Tensor:
    """Class token unchanged, the others through the convolution: (B, 1 + N', h, d)."""
    volume = _volume(tokens, grid)
    if tokens.shape[0] == 0:
        return tokens.new_empty(0, 1 + math.prod(pooled_grid(grid, stride)), *tokens.shape[2:])
    pooled = F.conv3d(volume, weight, stride=stride, padding=1, groups=weight.shape[0])
    return torch.cat((tokens[:, :1], _rows(pooled, tokens.shape[0])), 1)


def _parts(qkv: Tensor, key_value: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as (B, 1 + N, h, d), in the accumulation type."""
    packed = (qkv,) if key_value is None else (qkv, key_value)
    query, key, value = (
        part.unflatten(-1, (heads, -1)).to(accumulator(qkv.dtype))
        for tensor, count in zip(packed, (3,) if key_value is None else (1, 2), strict=True)
        for part in tensor.chunk(count, -1)
    )
    return query, key, value


def pool_tokens(
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_bias_q: Tensor,
    norm_weight_k: Tensor,
    norm_bias_k: Tensor,
    norm_weight_v: Tensor,
    norm_bias_v: Tensor,
    grid: Triple,
    key_value_grid: Triple,
    heads: int,
    stride_q: Triple,
    stride_kv: Triple,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v as (B, 1 + N', h, d) and the norms' (mean, rstd) of each, (B, 1 + N', h, 2)."""
    dtype = accumulator(qkv.dtype)
    parts = _parts(qkv, key_value, heads)
    pooled, statistics = [], []
    for tokens, weight, norm_weight, norm_bias, cells, stride in (
        (parts[0], weight_q, norm_weight_q, norm_bias_q, grid, stride_q),
        (parts[1], weight_k, norm_weight_k, norm_bias_k, key_value_grid, stride_kv),
        (parts[2], weight_v, norm_weight_v, norm_bias_v, key_value_grid, stride_kv),
    ):
        rows = _convolve(tokens, weight.to(dtype), cells, stride)
        mean, rstd = moments(rows, eps)
        pooled.append(((rows - mean) * rstd * norm_weight.to(dtype) + norm_bias.to(dtype)).to(qkv.dtype))
        statistics.append(torch.cat((mean, rstd), -1))
    return pooled[0], pooled[1], pooled[2], statistics[0], statistics[1], statistics[2]


def _backward_part(
    grad: Tensor,
    tokens: Tensor,
    weight: Tensor,
    norm_weight: Tensor,
    stats: Tensor,
    grid: Triple,
    stride: Triple,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the tokens (B, 1 + N, h, d), the convolution's weight and the norm's parameters."""
    mean, rstd = stats.split(1, -1)
    normalised = (_convolve(tokens, weight, grid, stride) - mean) * rstd
    grad_rows, grad_norm_weight, grad_norm_bias = layer_norm_backward(grad, normalised, rstd, norm_weight)
    batch = tokens.shape[0]
    if batch == 0:
        return torch.zeros_like(tokens), torch.zeros_like(weight), grad_norm_weight, grad_norm_bias
    out_grid = pooled_grid(grid, stride)
    grad_volume, grad_weight, _ = torch.ops.aten.convolution_backward(
        _volume(grad_rows, out_grid),
        _volume(tokens, grid),
        weight,
        None,
        stride,
        [1, 1, 1],
        [1, 1, 1],
        False,
        [0, 0, 0],
        weight.shape[0],
        [True, True, False],
    )
    grad_tokens = torch.cat((grad_rows[:, :1], _rows(grad_volume, batch)), 1)
    return grad_tokens, grad_weight, grad_norm_weight, grad_norm_bias


def pool_tokens_backward(
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_weight_k: Tensor,
    norm_weight_v: Tensor,
    stats_q: Tensor,
    stats_k: Tensor,
    stats_v: Tensor,
    grid: Triple,
    key_value_grid: Triple,
    heads: int,
    stride_q: Triple,
    stride_kv: Triple,
) -> tuple[Tensor, ...]:
    """Gradients of qkv, of key_value (empty where it is not given), the convolution weights and the norms.

    The convolution is recomputed: storing its outputs would cost as much memory as q, k and v again.
    """
    dtype = accumulator(qkv.dtype)
    parts = _parts(qkv, key_value, heads)
    results = [
        _backward_part(grad.to(dtype), tokens, weight.to(dtype), norm_weight.to(dtype), stats, cells, stride)
        for grad, tokens, weight, norm_weight, stats, cells, stride in (
            (grad_query, parts[0], weight_q, norm_weight_q, stats_q, grid, stride_q),
            (grad_key, parts[1], weight_k, norm_weight_k, stats_k, key_value_grid, stride_kv),
            (grad_value, parts[2], weight_v, norm_weight_v, stats_v, key_value_grid, stride_kv),
        )
    ]
    grads = [result[0].flatten(2).to(qkv.dtype) for result in results]
    if key_value is None:
        grad_qkv, grad_key_value = torch.cat(grads, -1), qkv.new_empty(0)
    else:
        grad_qkv, grad_key_value = grads[0], torch.cat(grads[1:], -1)
    convolutions = [
        result[1].to(w.dtype) for result, w in zip(results, (weight_q, weight_k, weight_v), strict=True)
    ]
    norms = [
        part.to(w.dtype)
        for result, w in zip(results, (norm_weight_q, norm_weight_k, norm_weight_v), strict=True)
        for part in result[2:]
    ]
    return grad_qkv, grad_key_value, *convolutions, *norms
