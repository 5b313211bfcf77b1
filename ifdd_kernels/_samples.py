"""Sample arguments of the ops: odd and minimal sizes, strided inputs, empty batches, short and long clips."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ifdd_kernels import _arguments
from ifdd_kernels._arguments import Arguments, Maker


@dataclass(frozen=True)
class Sample:
    """Arguments of an op, in the order of its schema."""

    label: str
    args: tuple[Any, ...]


def _sample(label: str, op: str, arguments: Arguments) -> Sample:
    return Sample(label, arguments.of(op))


def augment_clips(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, shape, size, crops, steps in (
        ("larger and smaller", (2, 2, 9, 7), 8, [[0, 0, 9, 7], [2, 1, 5, 6]], [[0, 1, 2, 3], [3, 2, 1, 0]]),
        ("odd sizes, contrast last", (1, 3, 23, 31), 5, [[1, 2, 20, 29]], [[2, 0, 3, 1]]),
        ("no steps", (2, 1, 6, 6), 6, [[0, 0, 6, 6], [3, 4, 1, 1]], [[-1] * 4, [-1, 3, -1, 1]]),
        ("one pixel", (1, 1, 5, 4), 1, [[0, 0, 5, 4]], [[1, 3, 0, 2]]),
        ("larger than a tile", (1, 2, 4, 70), 66, [[1, 3, 3, 67]], [[3, 1, 0, 2]]),
        ("empty batch", (0, 2, 4, 4), 3, [], []),
    ):
        arguments = _arguments.augment_clips(make, make.pixels(*shape, 3), crops, steps, size)
        yield _sample(label, "augment_clips", arguments)
    strided = make.pixels(1, 3, 6, 2, 7).permute(0, 3, 2, 4, 1)
    arguments = _arguments.augment_clips(make, strided, [[0, 1, 6, 6]], [[1, 0, 2, 3]], 4)
    yield _sample("strided", "augment_clips", arguments)


def _frames(make: Maker) -> Iterator[tuple[str, Tensor, int, int, int]]:
    """Frames (B, T, N, C) with their grid and pooled side, shared by the ops that start from frames."""
    yield "T=8, 7x7, identity pool", make.normal(2, 8, 49, 12), 7, 7, 7
    yield "T=2, odd grid and channels, strided", make.strided(1, 2, 15, 5), 3, 5, 2
    yield "T=16, pool larger than the grid", make.normal(1, 16, 4, 3), 2, 2, 3
    yield "T=32, one channel", make.normal(2, 32, 6, 1), 2, 3, 2
    yield "empty batch", make.normal(0, 8, 9, 4), 3, 3, 3


#: Channels of the tokens of each of these.
_ROWS = (7, 2, 5, 1, 3)


def add_layer_norm(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, shape, dropped in (
        ("tokens, branches dropped", (3, 5, 24), True),
        ("rows", (7, 96), False),
        ("four axes, odd channels, strided", (2, 3, 2, 13), True),
        ("two channels, one row", (1, 1, 2), True),
        ("empty batch", (0, 4, 6), True),
    ):
        arguments = _arguments.add_layer_norm(make, shape, dropped, "strided" in label)
        yield _sample(label, "add_layer_norm", arguments)


def frame_tokens(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for rows, (label, x, height, width, pool) in zip(_ROWS, _frames(make), strict=True):
        yield _sample(label, "frame_tokens", _arguments.frame_tokens(make, x, height, width, pool, rows))


def frame_correlation(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    yield Sample("T=8", (make.normal(2, 8, 343), 1 / 768))
    yield Sample("T=2, strided", (make.strided(1, 2, 5), 0.5))
    yield Sample("T=16, one value", (make.normal(3, 16, 1), 1.0))
    yield Sample("T=32", (make.normal(1, 32, 17), 0.1))
    yield Sample("empty batch", (make.normal(0, 8, 9), 1.0))


def split_index(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for rows, (label, x, height, width, pool) in zip(_ROWS, _frames(make), strict=True):
        yield _sample(label, "split_index", _arguments.split_index(make, x, height, width, pool, rows))


def topk_split_index(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for number, (label, x, height, width, pool) in enumerate(_frames(make)):
        yield Sample(label, (x, height, width, pool, number % 2 == 0))


def split_frames(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, shape, counts, positions, normed, aligned in (
        ("T=8, positions, norms", (2, 8, 9, 20), (4, 4), True, True, False),
        ("T=2, strided, unequal groups", (1, 2, 3, 5), (1, 3), True, False, False),
        ("T=16, frame numbers, norms", (3, 16, 4, 7), (8, 8), False, True, False),
        ("T=32, aligned positions, norms", (1, 32, 2, 33), (16, 16), True, True, True),
        ("odd T, frame numbers", (2, 3, 5, 6), (2, 1), False, False, False),
        ("empty batch", (0, 8, 4, 6), (4, 4), True, True, False),
    ):
        x = make.strided(*shape) if "strided" in label else make.normal(*shape)
        draw = make.positions if positions else make.frame_numbers
        static, dynamic = (draw(shape[0], count, shape[1]) for count in counts)
        arguments = _arguments.split_frames(make, x, static, dynamic, normed=normed, aligned=aligned)
        yield _sample(label, "split_frames", arguments)


def static_dynamic_split(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for number, (rows, (label, x, height, width, pool)) in enumerate(zip(_ROWS, _frames(make), strict=True)):
        arguments = _arguments.static_dynamic_split(
            make, x, height, width, pool, rows, normed=number != 1, eps=1e-2, aligned=number == 2
        )
        yield _sample(label, "static_dynamic_split", arguments)


def lifting_attention(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, sizes, scale in (
        ("2 heads of 8, packed key and value", (2, 12, 2, 8), 8**-0.5),
        ("one token", (1, 1, 1, 3), 1.0),
        ("large scores", (1, 9, 1, 4), 12.0),
        ("empty batch", (0, 4, 2, 4), 0.5),
    ):
        arguments = _arguments.lifting_attention(make, *sizes)
        arguments.constants["scale"] = scale
        yield _sample(label, "lifting_attention", arguments)
    yield Sample("odd sizes, strided", (*(make.strided(1, 17, 3, 5) for _ in range(3)), 0.4))


def lifting_step(make: Maker) -> Iterator[Sample]:
    """Samples of ``lifting_update`` and ``lifting_predict``."""
    for label, shape, heads, conditioned in (
        ("2 heads", (2, 12, 8), 2, False),
        ("self-conditioned, odd sizes", (1, 5, 9), 3, True),
        ("empty batch", (0, 4, 6), 1, False),
    ):
        groups = make.normal(*shape), make.normal(*shape)
        named = _arguments.lifting_step(make, *groups, heads, conditioned).named()
        yield Sample(label, tuple(named.values()))


def lifting_residual(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    yield Sample("T=8", (make.normal(2, 8, 9, 6), make.normal(2, 4, 9, 6)))
    yield Sample("T=2, strided", (make.strided(1, 2, 3, 5), make.strided(1, 1, 3, 5)))
    yield Sample("T=32, one channel", (make.normal(1, 32, 4, 1), make.normal(1, 16, 4, 1)))
    yield Sample("empty batch", (make.normal(0, 8, 4, 3), make.normal(0, 4, 4, 3)))


def lifting_loss(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    yield Sample("sum over clips", (make.normal(3, 7, 7), 0.1, 1.0, False))
    yield Sample("mean over clips, other beta", (make.normal(4, 5, scale=2.0), 1.0, 0.3, True))
    yield Sample("strided", (make.strided(2, 3, 5), 0.5, 1.0, False))
    yield Sample("one value a clip", (make.normal(3), 0.5, 1.0, True))
    yield Sample("empty batch", (make.normal(0, 7, 7), 0.1, 1.0, False))


def pool_tokens(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, batch, grid, key_value_grid, heads, channels, stride_q, stride_kv, strided in (
        ("stride 1 and 2", 2, (2, 4, 4), None, 2, 8, (1, 1, 1), (1, 2, 2), False),
        ("strides 2 and 8, odd grid", 1, (2, 9, 11), None, 1, 5, (1, 2, 2), (1, 8, 8), False),
        ("stride 4, strided", 1, (8, 8, 5), None, 1, 4, (1, 1, 1), (1, 4, 4), True),
        ("stride in time, one cell", 1, (3, 1, 1), None, 3, 3, (2, 1, 1), (2, 1, 1), False),
        ("empty batch", 0, (2, 4, 4), None, 2, 4, (1, 2, 2), (1, 2, 2), False),
        ("keys and values apart", 2, (2, 6, 7), (2, 4, 5), 2, 8, (1, 1, 1), (1, 3, 3), False),
        ("apart, odd and strided", 1, (2, 5, 4), (1, 7, 1), 1, 5, (1, 2, 2), (1, 3, 1), True),
        ("apart, empty batch", 0, (2, 4, 4), (2, 2, 2), 2, 4, (1, 2, 2), (1, 3, 3), False),
    ):
        arguments = _arguments.pool_tokens(
            make, batch, grid, heads, channels, stride_q, stride_kv, key_value_grid, strided
        )
        yield _sample(label, "pool_tokens", arguments)


def max_pool_tokens(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, batch, grid, channels, stride in (
        ("stride 2, odd grid", 2, (2, 7, 9), 8, (1, 2, 2)),
        ("stride 2, even grid", 1, (3, 4, 6), 5, (1, 2, 2)),
        ("every axis, odd stride", 1, (4, 6, 7), 3, (2, 3, 3)),
        ("stride 1", 1, (2, 2, 3), 4, (1, 1, 1)),
        ("longer than the axis", 2, (1, 1, 5), 1, (2, 2, 9)),
        ("empty batch", 0, (2, 4, 4), 4, (1, 2, 2)),
    ):
        yield Sample(label, (make.normal(batch, 1 + math.prod(grid), channels), list(grid), list(stride)))
    yield Sample("strided", (make.strided(2, 1 + 2 * 5 * 4, 6), [2, 5, 4], [1, 2, 2]))


def linear(make: Maker) -> Iterator[Sample]:
    """Samples of ``linear`` and ``gelu_linear``."""
    for label, shape, width in (
        ("tokens", (2, 9, 32), 8),
        ("rows, odd sizes", (7, 5), 3),
        ("one row", (1, 1, 16), 1),
        ("empty batch", (0, 4, 8), 6),
    ):
        yield _sample(label, "linear", _arguments.linear(make, make.normal(*shape), width))
    yield Sample("strided", (make.strided(2, 5, 6), make.strided(4, 6), make.strided(4)))


def pooled_attention(make: Maker) -> Iterator[Sample]:
    """Samples of the op."""
    for label, batch, q_grid, k_grid, heads, channels, strided in (
        ("equal grids", 2, (2, 3, 3), (2, 3, 3), 2, 8, False),
        ("coarser keys, odd sizes, strided", 1, (2, 6, 9), (2, 3, 3), 1, 5, True),
        ("finer keys", 1, (2, 2, 2), (2, 4, 4), 2, 4, False),
        ("T=8, one cell a frame", 1, (8, 1, 1), (8, 1, 1), 1, 3, False),
        ("uneven ratio", 1, (3, 5, 4), (2, 2, 3), 1, 4, False),
        ("empty batch", 0, (2, 2, 2), (2, 2, 2), 1, 4, False),
    ):
        arguments = _arguments.pooled_attention(make, batch, q_grid, k_grid, heads, channels, strided)
        yield _sample(label, "pooled_attention", arguments)
