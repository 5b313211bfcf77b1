"""What the CUDA kernels of several ops do not take: told before a launch, which would refuse it too.

Numbers of rows are not looked at while a compiler traces, where comparing would bound every symbolic size.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows of channels that kernels count in 32 bits.
ROWS = 2**30
#: Longest side of a grid that the tokenizer pools, and of one that pool_tokens does.
SIDE, POOLED_SIDE = 32767, 2**24
#: Most frames of a clip that topk_split_index ranks in shared memory.
RANKED_FRAMES = 8192
#: Most frames of both groups whose samples backward of split_frames keeps in shared memory.
SAMPLED_FRAMES = 2048
#: Most channels of a head, of which a warp holds a row in registers.
HEAD_DIM = 128


def most(what: str, limit: int, value: int) -> str:
    """A limit on a number: empty where the number keeps to it."""
    return "" if value <= limit else f"its CUDA kernels take {what} <= {limit}, got {value}"


def rows(count: int) -> str:
    """The limit on rows of channels."""
    return "" if torch.compiler.is_compiling() else most("rows of channels", ROWS, count)


def tokenizer(x: Tensor, outputs: int = 1, height: int = 0, width: int = 0, pool: int = 0) -> str:
    """Limits on frames (B, T, N, C) whose grid is pooled to (pool, pool); zeros where that is not known."""
    batch, frames, tokens = x.shape[:3]
    return most("sides of the grid and of the pool", SIDE, max(height, width, pool)) or rows(
        max(batch * frames * max(tokens, pool * pool), outputs * pool * pool)
    )
