"""Input limits of the CUDA kernels, reported before the launch would fail.

Numbers of rows are not looked at while a compiler traces, where comparing would bound every symbolic size.

A limit is also asked about calls that are not made yet, of which one tensor is known or an empty one that
only stands for a device, and about calls with wrong shapes, which the op refuses in its own words. So a limit
reads every shape through :func:`sizes`, and reports only what is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Rows of channels that kernels count in 32 bits.
ROWS = 2**30
#: Longest side of a grid that the tokenizer pools, and of one that pool_tokens does.
SIDE, POOLED_SIDE = 32767, 2**24
#: Longest side of frames and results of augment_clips, whose distances are integers of 32 bits.
RESIZED_SIDE = 16384
#: Most times the width of frames of augment_clips may be that of the result: rows lie in shared memory.
REDUCTION = 30
#: Most frames of a clip that topk_split_index ranks in shared memory.
RANKED_FRAMES = 8192
#: Most frames of both groups whose samples backward of split_frames keeps in shared memory.
SAMPLED_FRAMES = 2048
#: Most channels of a head, of which a warp holds a row in registers.
HEAD_DIM = 128
#: Most channels of a stream that add_layer_norm holds in the registers of a warp.
NORMED_CHANNELS = 1024


def sizes(argument: object, rank: int) -> Sequence[int]:
    """The shape of a tensor of a rank; of anything else zeros, which keep to every limit."""
    shape = argument.shape if isinstance(argument, Tensor) else ()
    return shape if len(shape) == rank else (0,) * rank


def longest(*sides: object) -> int:
    """The largest of the sides that are given, as numbers or as grids; 0 without any."""
    grids = [side if isinstance(side, (list, tuple)) else (side,) for side in sides]
    given: list[Any] = [side for grid in grids for side in grid if isinstance(side, (int, torch.SymInt))]
    largest: int = max([0, *given])  # compilers know no default of max
    return largest


def most(what: str, limit: int, value: int) -> str:
    """A limit on a number: empty where the number keeps to it."""
    return "" if value <= limit else f"its CUDA kernels take {what} <= {limit}, got {value}"


def rows(count: int) -> str:
    """The limit on rows of channels."""
    return "" if torch.compiler.is_compiling() else most("rows of channels", ROWS, count)


def resized(frames: Tensor | None, size: int | None) -> str:
    """Limits on frames (B, T, H, W, 3) whose crops are resized to ``size``."""
    _, _, height, width, _ = sizes(frames, 5)
    return most("sides of frames and result", RESIZED_SIDE, longest(height, width, size)) or (
        "" if longest(size) < 1 else most("a width of frames / size", REDUCTION, -(-width // longest(size)))
    )


def tokenizer(
    x: Tensor | None,
    weight: Tensor | None,
    height: int | None = None,
    width: int | None = None,
    pool: int | None = None,
) -> str:
    """Limits on frames x (B, T, N, C) whose grid is pooled to (pool, pool) and projected by weight (S, C)."""
    batch, frames, tokens, _ = sizes(x, 4)
    outputs, cells = sizes(weight, 2)[0], longest(pool) ** 2
    return most("sides of the grid and of the pool", SIDE, longest(height, width, pool)) or rows(
        max(batch * frames * max(tokens, cells), outputs * cells)
    )
