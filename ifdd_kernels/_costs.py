"""The least each op must move and compute, from the arguments that a cost's parameters name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ifdd_kernels.grids import live_tokens, pooled_grid
from ifdd_kernels.reference._common import accumulator


@dataclass(frozen=True)
class Cost:
    """The least an op can do: bytes of its inputs and outputs, each moved once, and its FLOPs (2 per
    multiply-add; an exponential or a square root counts 1).
    """

    bytes: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


def size(*tensors: Tensor | None) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def frame_tokens(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> Cost:
    """Pooling, one product, GELU."""
    batch, frames, _, channels = x.shape
    out = batch * frames * pool * pool * weight.shape[0]
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    written = out * accumulator(x.dtype).itemsize
    return Cost(size(x, weight, bias) + written, pooling + out * (2 * channels + 10))


def frame_correlation(tokens: Tensor) -> Cost:
    """One product."""
    batch, frames, width = tokens.shape
    out = batch * frames * frames
    return Cost(size(tokens) + out * accumulator(tokens.dtype).itemsize, out * (2 * width + 1))


def split_index(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    height: int,
    width: int,
    pool: int,
) -> Cost:
    """Tokens, their correlation, two softmaxes and two products."""
    batch, frames = x.shape[:2]
    tokens = frame_tokens(x, token_weight, token_bias, height, width, pool)
    width_of_tokens = token_weight.shape[0] * pool * pool
    pairs = batch * frames * frames
    offsets = 2 * (pairs * 5 + 2 * batch * static_weight.numel())
    written = (pairs + batch * frames) * accumulator(x.dtype).itemsize
    read = size(x, token_weight, token_bias, static_weight, dynamic_weight)
    return Cost(read + written, tokens.flops + pairs * (2 * width_of_tokens + 1) + offsets)


def topk_split_index(x: Tensor, height: int, width: int, pool: int) -> Cost:
    """Pooling, and the product of each frame's tokens with their sum."""
    batch, frames, _, channels = x.shape
    values = batch * frames * pool * pool * channels
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    return Cost(size(x) + batch * frames * 8, pooling + 3 * values)


def split_frames(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
) -> Cost:
    """Interpolation and norms of every sampled frame."""
    batch, _, tokens, channels = x.shape
    out = batch * (static_index.shape[1] + dynamic_index.shape[1]) * tokens * channels
    read = size(
        x,
        static_index,
        dynamic_index,
        static_norm_weight,
        static_norm_bias,
        dynamic_norm_weight,
        dynamic_norm_bias,
    )
    flops = (3 if static_index.is_floating_point() else 0) + (8 if static_norm_weight is not None else 0)
    return Cost(read + out * x.element_size(), out * flops)


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
) -> Cost:
    """Both of its parts; x is read once, and the indexes of the first are what the second takes."""
    index = split_index(x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool)
    positions = x.new_empty(x.shape[0], x.shape[1] // 2, dtype=accumulator(x.dtype))
    norms = (static_norm_weight, static_norm_bias, dynamic_norm_weight, dynamic_norm_bias)
    frames = split_frames(x, positions, positions, *norms)
    return Cost(index.bytes + frames.bytes - size(x, positions, positions), index.flops + frames.flops)


def lifting_attention(query: Tensor, key: Tensor, value: Tensor) -> Cost:
    """Scores, softmax, values."""
    batch, tokens, heads, channels = query.shape
    pairs = batch * heads * tokens * tokens
    return Cost(size(query, key, value, query), pairs * (4 * channels + 5) + query.numel())


def lifting_step(
    target: Tensor,
    source: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_value_weight: Tensor,
    key_value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    num_heads: int,
) -> Cost:
    """Four projections around the attention."""
    batch, tokens, channels = target.shape
    per_head = target.reshape(batch, tokens, num_heads, channels // num_heads)
    attention = lifting_attention(per_head, per_head, per_head)
    projections = 8 * batch * tokens * channels * channels
    parameters = (query_weight, query_bias, key_value_weight, key_value_bias, output_weight, output_bias)
    return Cost(size(target, source, target, *parameters), attention.flops + projections)


def lifting_residual(x: Tensor, approximation: Tensor) -> Cost:
    """Two means."""
    written = x.shape[0] * x.shape[2] * accumulator(x.dtype).itemsize
    return Cost(size(x, approximation) + written, x.numel() + approximation.numel())


def lifting_loss(residual: Tensor) -> Cost:
    """One sum."""
    return Cost(size(residual) + accumulator(residual.dtype).itemsize, 4 * residual.numel())


def pool_tokens(
    qkv: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_bias_q: Tensor,
    norm_weight_k: Tensor,
    norm_bias_k: Tensor,
    norm_weight_v: Tensor,
    norm_bias_v: Tensor,
    grid: Sequence[int],
    key_value_grid: Sequence[int],
    heads: int,
    stride_q: Sequence[int],
    stride_kv: Sequence[int],
) -> Cost:
    """27 products and a norm a cell; of keys and values only the tokens that a window covers are read."""
    norms = (norm_weight_q, norm_bias_q, norm_weight_k, norm_bias_k, norm_weight_v, norm_bias_v)
    rows = qkv.shape[0] * heads * weight_q.shape[0]  # one token of q, k or v over batch, heads and channels
    parts = ((grid, stride_q), (key_value_grid, stride_kv), (key_value_grid, stride_kv))
    read = sum(len(live_tokens(*part).rows) for part in parts)
    cells = [math.prod(pooled_grid(*part)) for part in parts]
    written = sum(1 + n for n in cells)
    flops = rows * sum(54 * n + 8 * (1 + n) for n in cells)
    moved = size(weight_q, weight_k, weight_v, *norms) + rows * (read + written) * qkv.element_size()
    return Cost(moved, flops)


def max_pool_tokens(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> Cost:
    """One comparison a value of a window; the row of each maximum is written, too."""
    results = x.shape[0] * math.prod(pooled_grid(grid, stride)) * x.shape[2]
    window = math.prod(step + 1 if step > 1 else 1 for step in stride)
    kept = results * torch.int32.itemsize
    class_tokens = x.shape[0] * x.shape[2]
    return Cost(size(x) + (results + class_tokens) * x.element_size() + kept, results * (window - 1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Cost:
    """One product."""
    rows, out = x.numel() // x.shape[-1], weight.shape[0]
    return Cost(size(x, weight, bias) + rows * out * x.element_size(), 2 * x.numel() * out)


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    """One product of an activation."""
    return linear(x, weight, bias) + Cost(0, 8 * x.numel())


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
) -> Cost:
    """Scores, softmax, values, and a product of each query with the positions on three axes."""
    batch, rows, heads, channels = query.shape
    pairs = batch * heads * rows * key.shape[1]
    position = 2 * batch * heads * math.prod(q_grid) * sum(k_grid) * channels
    moved = size(query, key, value, table_h, table_w, table_t, query)
    return Cost(moved, pairs * (4 * channels + 8) + position + query.numel())
