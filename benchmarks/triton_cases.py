"""Which shapes the Triton kernels are compiled for in the resource table: those of IFDD on MViTv2-XS.

The kernels see shapes only through compile-time strides, divisibility and tile sizes, so that a few blocks
stand for all of them. Tensors are on the meta device: nothing is allocated, and no GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels.ops.pool_tokens import live_tokens
from ifdd_kernels.ops.pooled_attention import table_length

BATCH, FRAMES, HEAD = 16, 8, 96
Make = Callable[..., Tensor]

#: grid, heads, stride of q, stride of k and v: blocks 0, 1 and 4 of the backbone.
BLOCKS = (
    ((8, 56, 56), 1, (1, 1, 1), (1, 8, 8)),
    ((8, 56, 56), 2, (1, 2, 2), (1, 4, 4)),
    ((8, 14, 14), 4, (1, 1, 1), (1, 2, 2)),
)


def cases(dtype: torch.dtype) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(op, label, arguments of its schema)."""

    def make(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def parameter(*shape: int) -> Tensor:
        return make(*shape, dtype=torch.float32)

    for number, block in zip((0, 1, 4), BLOCKS, strict=True):
        yield "pool_tokens", f"block {number}", _pooling(make, parameter, *block)
    for grid, keys, heads in (((8, 28, 28), (8, 7, 7), 2), ((8, 28, 28), (8, 14, 14), 4)):
        q, k = (1 + math.prod(size) for size in (grid, keys))
        rows = [make(BATCH, count, heads, HEAD) for count in (q, k, k)]
        tables = [parameter(table_length(grid[axis], keys[axis]), HEAD) for axis in (1, 2, 0)]
        arguments = (*rows, *tables, list(grid), list(keys), HEAD**-0.5)
        yield "pooled_attention", f"keys {keys[1]} x {keys[2]}", arguments
    frames = make(BATCH, FRAMES, 49, 768)
    weight, bias = parameter(7, 768), parameter(7)
    yield "frame_tokens", "stage 4", (frames, weight, bias, 7, 7, 7)
    yield "frame_correlation", "stage 4", (parameter(BATCH, FRAMES, 343), 1 / 343)
    offsets = [parameter(FRAMES // 2, FRAMES * FRAMES) for _ in range(2)]
    yield "split_index", "stage 4", (frames, weight, bias, *offsets, 7, 7, 7, 2.0)
    yield "topk_split_index", "stage 4", (frames, 7, 7, 7, True)
    index = [parameter(BATCH, FRAMES // 2) for _ in range(2)]
    norms = [parameter(768) for _ in range(4)]
    yield "split_frames", "positions, norms", (frames, *index, *norms, 1e-5, False)
    numbers = [make(BATCH, FRAMES // 2, dtype=torch.int64) for _ in range(2)]
    yield "split_frames", "frame numbers", (frames, *numbers, None, None, None, None, 1e-5, False)
    packed = [make(BATCH, 196, 8, HEAD) for _ in range(3)]
    yield "lifting_attention", "LADM", (*packed, HEAD**-0.5)
    yield "lifting_residual", "LADM", (frames, make(BATCH, FRAMES // 2, 49, 768))
    yield "lifting_loss", "LADM", (parameter(BATCH, 49, 768), 0.1, 1.0, False)


def _pooling(
    make: Make,
    parameter: Make,
    grid: tuple[int, int, int],
    heads: int,
    stride_q: tuple[int, int, int],
    stride_kv: tuple[int, int, int],
) -> tuple[Any, ...]:
    """With k and v on the grid of their live tokens where some are dead, as the backbone calls it."""
    width = heads * HEAD
    live = live_tokens(grid, stride_kv, device="cpu")
    apart = live.grid != grid
    qkv = make(BATCH, 1 + math.prod(grid), width * (1 if apart else 3))
    key_value = make(BATCH, 1 + math.prod(live.grid), 2 * width) if apart else None
    weights = [parameter(HEAD, 1, 3, 3, 3) for _ in range(3)]
    norms = [parameter(HEAD) for _ in range(6)]
    strides = (list(stride_q), list(live.stride))
    return (qkv, key_value, *weights, *norms, list(grid), list(live.grid), heads, *strides, 1e-6)
