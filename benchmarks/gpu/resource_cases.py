"""Which shapes the Triton kernels are compiled for in the resource table: those of IFDD on MViTv2-XS.

The kernels see shapes only through compile-time strides, divisibility and tile sizes, so that a few blocks
stand for all of them, and one ragged shape an op for those that nothing divides. bfloat16, which the network
is trained in, is compiled at every block; float16 and float32 at one. Tensors are on the meta device: nothing
is allocated, and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.suite.shapes import live_pooling, network_shape
from ifdd import IFDDConfig
from ifdd_kernels import _arguments
from ifdd_kernels._arguments import Arguments, Unfilled

BATCH, FRAMES, HEAD = 16, 8, 96
#: (op, label, arguments of its schema).
Case = tuple[str, str, tuple[Any, ...]]


def cases() -> Iterator[Case]:
    """All of them."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _network(Unfilled(dtype), every_block=dtype == torch.bfloat16)
    yield from _ragged(Unfilled(torch.bfloat16))


def _case(op: str, label: str, arguments: Arguments) -> Case:
    return op, label, arguments.of(op)


def _network(make: Unfilled, every_block: bool) -> Iterator[Case]:
    blocks = {block.label.partition("-")[0]: block for block in network_shape(IFDDConfig()).blocks}
    for channels in (96, 192, 384, 768) if every_block else (96,):
        stream = _arguments.add_layer_norm(make, (BATCH, 1 + FRAMES * 28 * 28, channels))
        yield _case("add_layer_norm", f"{channels} channels", stream)
    skip = make.normal(BATCH, 1 + FRAMES * 56 * 56, 192)
    yield "max_pool_tokens", "block 1", (skip, [FRAMES, 56, 56], [1, 2, 2])
    hidden = make.normal(BATCH, 1 + FRAMES * 28 * 28, 768)
    yield _case("gelu_linear", "192 channels", _arguments.linear(make, hidden, 192))
    for number in ("0", "1", "4") if every_block else ("1",):
        yield _case("pool_tokens", f"block {number}", live_pooling(make, blocks[number], BATCH))
    for grid, keys, heads in (((8, 28, 28), (8, 7, 7), 2), ((8, 28, 28), (8, 14, 14), 4)):
        if every_block or keys[1] == 7:
            attention = _arguments.pooled_attention(make, BATCH, grid, keys, heads, HEAD)
            yield _case("pooled_attention", f"keys {keys[1]} x {keys[2]}", attention)
    yield _case("augment_clips", "frames of 224 x 224", _clips(make, (16, 224, 224), 224))
    frames = make.normal(BATCH, FRAMES, 49, 768)
    yield _case("frame_tokens", "stage 4", _arguments.frame_tokens(make, frames, 7, 7, 7, rows=7))
    yield "frame_correlation", "stage 4", (make.parameter(BATCH, FRAMES, 343), 1 / 343)
    yield _case("split_index", "stage 4", _arguments.split_index(make, frames, 7, 7, 7, rows=7))
    yield "topk_split_index", "stage 4", (frames, 7, 7, 7, True)
    index = [make.positions(BATCH, FRAMES // 2, FRAMES) for _ in range(2)]
    yield _case("split_frames", "positions, norms", _arguments.split_frames(make, frames, *index))
    if every_block:
        numbers = [make.frame_numbers(BATCH, FRAMES // 2, FRAMES) for _ in range(2)]
        plain = _arguments.split_frames(make, frames, *numbers, normed=False)
        yield _case("split_frames", "frame numbers", plain)
    packed = [make.normal(BATCH, 196, 8, HEAD) for _ in range(3)]
    yield "lifting_attention", "LADM", (*packed, HEAD**-0.5)
    yield "lifting_residual", "LADM", (frames, make.normal(BATCH, FRAMES // 2, 49, 768))
    yield "lifting_loss", "LADM", (make.parameter(BATCH, 49, 768), 0.1, 1.0, False)


def _clips(make: Unfilled, shape: tuple[int, int, int], size: int) -> Arguments:
    """Of clips of (frames, height, width)."""
    _, height, width = shape
    crops, steps = [[0, 0, height, width]] * BATCH, [[0, 1, 2, 3]] * BATCH
    return _arguments.augment_clips(make, make.pixels(BATCH, *shape, 3), crops, steps, size)


def _ragged(make: Unfilled) -> Iterator[Case]:
    """Sizes that no tile divides: 33 channels, 5 frames, uneven grids."""
    label, count = "ragged", 33
    yield _case("add_layer_norm", label, _arguments.add_layer_norm(make, (3, 77, count), dropped=False))
    yield "max_pool_tokens", label, (make.normal(3, 1 + 3 * 7 * 9, count), [3, 7, 9], [2, 3, 2])
    yield _case("gelu_linear", label, _arguments.linear(make, make.normal(3, 77, count), 13))
    pooling = _arguments.pool_tokens(make, BATCH, (3, 7, 9), 3, 24, (1, 2, 2), (1, 2, 2))
    yield _case("pool_tokens", label, pooling)
    attention = _arguments.pooled_attention(make, BATCH, (3, 5, 7), (3, 3, 4), 3, 40)
    yield _case("pooled_attention", label, attention)
    yield _case("augment_clips", label, _clips(make, (5, 77, 93), 33))
    frames, even = make.normal(3, 5, 77, count), make.normal(3, 6, 77, count)
    yield _case("frame_tokens", label, _arguments.frame_tokens(make, frames, 7, 11, 3, rows=70))
    yield "frame_correlation", label, (make.parameter(3, 5, 630), 1 / 630)
    yield _case("split_index", label, _arguments.split_index(make, even, 7, 11, 3, rows=70))
    yield "topk_split_index", label, (even, 7, 11, 3, True)
    index = [make.positions(3, 3, 5) for _ in range(2)]
    yield _case("split_frames", label, _arguments.split_frames(make, frames, *index))
    yield "lifting_attention", label, (*(make.normal(3, 77, 3, 40) for _ in range(3)), 40**-0.5)
    yield "lifting_residual", label, (frames, make.normal(3, 2, 77, count))
    yield "lifting_loss", label, (make.parameter(3, 77, count), 0.1, 1.0, False)
