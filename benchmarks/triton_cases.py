"""Which shapes the Triton kernels are compiled for in the resource table: those of IFDD on MViTv2-XS.

The kernels see shapes only through compile-time strides, divisibility and tile sizes, so that a few blocks
stand for all of them, and one ragged shape an op for those that nothing divides. bfloat16, which the network
is trained in, is compiled at every block; float16 and float32 at one. Tensors are on the meta device: nothing
is allocated, and no GPU is needed.
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
Grid = tuple[int, int, int]
Make = Callable[..., Tensor]
#: (op, label, arguments of its schema).
Case = tuple[str, str, tuple[Any, ...]]

#: grid, heads, stride of q, stride of k and v: blocks 0, 1 and 4 of the backbone.
BLOCKS = (
    ((8, 56, 56), 1, (1, 1, 1), (1, 8, 8)),
    ((8, 56, 56), 2, (1, 2, 2), (1, 4, 4)),
    ((8, 14, 14), 4, (1, 1, 1), (1, 2, 2)),
)


def cases() -> Iterator[Case]:
    """All of them."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _network(_maker(dtype), every_block=dtype == torch.bfloat16)
    yield from _ragged(_maker(torch.bfloat16))


def _maker(dtype: torch.dtype) -> Make:
    def make(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return make


def parameter(*shape: int) -> Tensor:
    """Parameters are float32 whatever the frames are."""
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _network(make: Make, every_block: bool) -> Iterator[Case]:
    for number, block in zip((0, 1, 4), BLOCKS, strict=True):
        if every_block or number == 1:
            yield "pool_tokens", f"block {number}", _pooling(make, HEAD, *block)
    for grid, keys, heads in (((8, 28, 28), (8, 7, 7), 2), ((8, 28, 28), (8, 14, 14), 4)):
        if every_block or keys[1] == 7:
            arguments = _attention(make, grid, keys, heads, HEAD)
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
    if every_block:
        numbers = [make(BATCH, FRAMES // 2, dtype=torch.int64) for _ in range(2)]
        yield "split_frames", "frame numbers", (frames, *numbers, None, None, None, None, 1e-5, False)
    packed = [make(BATCH, 196, 8, HEAD) for _ in range(3)]
    yield "lifting_attention", "LADM", (*packed, HEAD**-0.5)
    yield "lifting_residual", "LADM", (frames, make(BATCH, FRAMES // 2, 49, 768))
    yield "lifting_loss", "LADM", (parameter(BATCH, 49, 768), 0.1, 1.0, False)


def _ragged(make: Make) -> Iterator[Case]:
    """Sizes that no tile divides: 33 channels, 5 frames, uneven grids."""
    label, count = "ragged", 33
    yield "pool_tokens", label, _pooling(make, 24, (3, 7, 9), 3, (1, 2, 2), (1, 2, 2))
    yield "pooled_attention", label, _attention(make, (3, 5, 7), (3, 3, 4), 3, 40)
    frames = make(3, 5, 77, count)
    weight, bias = parameter(70, count), parameter(70)
    yield "frame_tokens", label, (frames, weight, bias, 7, 11, 3)
    yield "frame_correlation", label, (parameter(3, 5, 630), 1 / 630)
    even = make(3, 6, 77, count)
    yield "split_index", label, (even, weight, bias, parameter(3, 36), parameter(3, 36), 7, 11, 3, 2.0)
    yield "topk_split_index", label, (even, 7, 11, 3, True)
    index, norms = [parameter(3, 3), parameter(3, 3)], [parameter(count) for _ in range(4)]
    yield "split_frames", label, (frames, *index, *norms, 1e-5, False)
    yield "lifting_attention", label, (*(make(3, 77, 3, 40) for _ in range(3)), 40**-0.5)
    yield "lifting_residual", label, (frames, make(3, 2, 77, count))
    yield "lifting_loss", label, (parameter(3, 77, count), 0.1, 1.0, False)


def _attention(make: Make, grid: Grid, keys: Grid, heads: int, width: int) -> tuple[Any, ...]:
    q, k = (1 + math.prod(size) for size in (grid, keys))
    rows = [make(BATCH, count, heads, width) for count in (q, k, k)]
    tables = [parameter(table_length(grid[axis], keys[axis]), width) for axis in (1, 2, 0)]
    return (*rows, *tables, list(grid), list(keys), width**-0.5)


def _pooling(
    make: Make, channels: int, grid: Grid, heads: int, stride_q: Grid, stride_kv: Grid
) -> tuple[Any, ...]:
    """With k and v on the grid of their live tokens where some are dead, as the backbone calls it."""
    width = heads * channels
    live = live_tokens(grid, stride_kv, device="cpu")
    apart = live.grid != grid
    qkv = make(BATCH, 1 + math.prod(grid), width * (1 if apart else 3))
    key_value = make(BATCH, 1 + math.prod(live.grid), 2 * width) if apart else None
    weights = [parameter(channels, 1, 3, 3, 3) for _ in range(3)]
    norms = [parameter(channels) for _ in range(6)]
    strides = (list(stride_q), list(live.stride))
    return (qkv, key_value, *weights, *norms, list(grid), list(live.grid), heads, *strides, 1e-6)
