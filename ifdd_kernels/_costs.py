"""The least each op must move and compute, from the arguments that a cost's parameters name.

That every tensor an op is given is read once goes without saying: the registry adds it. What stands here is
what an op writes, and its FLOPs.
"""

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


def add_layer_norm(x: Tensor) -> Cost:
    """A sum, two moments and a norm."""
    rows = math.prod(x.shape[:-1])
    return Cost(2 * size(x) + 2 * rows * accumulator(x.dtype).itemsize, 10 * x.numel())


def augment_clips(frames: Tensor, strengths: Tensor, size: int) -> Cost:
    """Two taps on each axis, the least there are, and about 60 operations of the colour steps on a pixel."""
    pixels = frames.shape[0] * frames.shape[1] * size * size
    return Cost(3 * pixels * strengths.element_size(), pixels * (3 * 2 * 4 + 60))


def frame_tokens(x: Tensor, weight: Tensor, height: int, width: int, pool: int) -> Cost:
    """Pooling, one product, GELU."""
    batch, frames, _, channels = x.shape
    out = batch * frames * pool * pool * weight.shape[0]
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    return Cost(out * accumulator(x.dtype).itemsize, pooling + out * (2 * channels + 10))


def frame_correlation(tokens: Tensor) -> Cost:
    """One product."""
    batch, frames, width = tokens.shape
    out = batch * frames * frames
    return Cost(out * accumulator(tokens.dtype).itemsize, out * (2 * width + 1))


def split_index(
    x: Tensor, token_weight: Tensor, static_weight: Tensor, height: int, width: int, pool: int
) -> Cost:
    """Tokens, their correlation, two softmaxes and two products."""
    batch, frames = x.shape[:2]
    tokens = frame_tokens(x, token_weight, height, width, pool)
    width_of_tokens = token_weight.shape[0] * pool * pool
    pairs = batch * frames * frames
    offsets = 2 * (pairs * 5 + 2 * batch * static_weight.numel())
    written = (pairs + batch * frames) * accumulator(x.dtype).itemsize
    return Cost(written, tokens.flops + pairs * (2 * width_of_tokens + 1) + offsets)


def topk_split_index(x: Tensor, height: int, width: int, pool: int) -> Cost:
    """Pooling, and the product of each frame's tokens with their sum."""
    batch, frames, _, channels = x.shape
    values = batch * frames * pool * pool * channels
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    return Cost(batch * frames * 8, pooling + 3 * values)


def split_frames(
    x: Tensor, static_index: Tensor, dynamic_index: Tensor, static_norm_weight: Tensor | None
) -> Cost:
    """Interpolation and norms of every sampled frame."""
    batch, _, tokens, channels = x.shape
    out = batch * (static_index.shape[1] + dynamic_index.shape[1]) * tokens * channels
    flops = (3 if static_index.is_floating_point() else 0) + (8 if static_norm_weight is not None else 0)
    return Cost(out * x.element_size(), out * flops)


def static_dynamic_split(
    x: Tensor,
    token_weight: Tensor,
    static_weight: Tensor,
    static_norm_weight: Tensor | None,
    height: int,
    width: int,
    pool: int,
) -> Cost:
    """Both of its parts; the indexes that the first writes are not read again."""
    positions = x.new_empty(x.shape[0], x.shape[1] // 2, dtype=accumulator(x.dtype))
    index = split_index(x, token_weight, static_weight, height, width, pool)
    return index + split_frames(x, positions, positions, static_norm_weight)


def lifting_attention(query: Tensor) -> Cost:
    """Scores, softmax, values."""
    batch, tokens, heads, channels = query.shape
    pairs = batch * heads * tokens * tokens
    return Cost(size(query), pairs * (4 * channels + 5) + query.numel())


def lifting_step(target: Tensor, num_heads: int) -> Cost:
    """Four projections around the attention."""
    batch, tokens, channels = target.shape
    attention = lifting_attention(target.reshape(batch, tokens, num_heads, channels // num_heads))
    return Cost(size(target), attention.flops + 8 * batch * tokens * channels * channels)


def lifting_residual(x: Tensor, approximation: Tensor) -> Cost:
    """Two means."""
    written = x.shape[0] * x.shape[2] * accumulator(x.dtype).itemsize
    return Cost(written, x.numel() + approximation.numel())


def lifting_loss(residual: Tensor) -> Cost:
    """One sum."""
    return Cost(accumulator(residual.dtype).itemsize, 4 * residual.numel())


def pool_tokens(
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    grid: Sequence[int],
    key_value_grid: Sequence[int],
    heads: int,
    stride_q: Sequence[int],
    stride_kv: Sequence[int],
) -> Cost:
    """27 products and a norm a cell; of keys and values only the tokens that a window covers are read."""
    rows = qkv.shape[0] * heads * weight_q.shape[0]  # one token of q, k or v over batch, heads and channels
    parts = ((grid, stride_q), (key_value_grid, stride_kv), (key_value_grid, stride_kv))
    read = sum(len(live_tokens(*part).rows) for part in parts)
    cells = [math.prod(pooled_grid(*part)) for part in parts]
    written = sum(1 + n for n in cells)
    moved = rows * (read + written) * qkv.element_size()
    return Cost(moved - size(qkv, key_value), rows * sum(54 * n + 8 * (1 + n) for n in cells))


def max_pool_tokens(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> Cost:
    """One comparison a value of a window; the row of each maximum is written, too."""
    results = x.shape[0] * math.prod(pooled_grid(grid, stride)) * x.shape[2]
    window = math.prod(step + 1 if step > 1 else 1 for step in stride)
    kept = results * torch.int32.itemsize
    class_tokens = x.shape[0] * x.shape[2]
    return Cost((results + class_tokens) * x.element_size() + kept, results * (window - 1))


def linear(x: Tensor, weight: Tensor) -> Cost:
    """One product."""
    rows, out = x.numel() // x.shape[-1], weight.shape[0]
    return Cost(rows * out * x.element_size(), 2 * x.numel() * out)


def gelu_linear(x: Tensor, weight: Tensor) -> Cost:
    """One product of an activation."""
    return linear(x, weight) + Cost(0, 8 * x.numel())


def pooled_attention(query: Tensor, key: Tensor, q_grid: Sequence[int], k_grid: Sequence[int]) -> Cost:
    """Scores, softmax, values, and a product of each query with the positions on three axes."""
    batch, rows, heads, channels = query.shape
    pairs = batch * heads * rows * key.shape[1]
    position = 2 * batch * heads * math.prod(q_grid) * sum(k_grid) * channels
    return Cost(size(query), pairs * (4 * channels + 8) + position + query.numel())
