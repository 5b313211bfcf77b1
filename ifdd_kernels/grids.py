"""Arithmetic of grids (T, H, W): pooled grids, the cells that pooling reads, rows of position tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ifdd_kernels import _check

Grid = tuple[int, int, int]


def pooled_grid(grid: Sequence[int], stride: Sequence[int]) -> Grid:
    """Grid after a 3x3x3 pooling with padding 1: ceil(size / stride) on each axis.

    Args:
        grid: (T, H, W), positive.
        stride: (time, height, width) stride, positive.

    Returns:
        (T', H', W').

    Raises:
        ValueError, TypeError: a grid or stride that is not a triple of positive integers.
    """
    grid, stride = _check.triple("pooled_grid", "grid", grid), _check.triple("pooled_grid", "stride", stride)
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


class LiveTokens(NamedTuple):
    """The tokens that some window of a strided pooling covers: :func:`live_tokens`."""

    #: (1 + Tk*Hk*Wk,) int64: places in the full layout (B, 1 + T*H*W, C), the class token first.
    rows: Tensor
    #: (Tk, Hk, Wk): the live cells, compacted.
    grid: Grid
    #: The stride on `grid` whose pooling equals the given one on the full grid.
    stride: Grid


def live_tokens(
    grid: Sequence[int], stride: Sequence[int], device: torch.device | str | None = None
) -> LiveTokens:
    r"""Which tokens a 3x3x3 pooling with padding 1 reads, and the same pooling on those alone.

    Along an axis with stride s > 3 the windows :math:`\{so - 1, so, so + 1\}` leave gaps. Without the gaps
    they lie side by side, which makes the pooling one of stride 3 on an axis of the live cells. Strides 1
    and 2 read every cell; stride 3 may miss the last one.

    Args:
        grid: (T, H, W), positive.
        stride: (time, height, width) stride, positive.
        device: of `rows`; PyTorch's default one where it is not given.

    Returns:
        :class:`LiveTokens`.

    Raises:
        ValueError, TypeError: a grid or stride that is not a triple of positive integers.

    Example: keys and values from live tokens only, exactly as from all of them::

        live = live_tokens(grid, stride_kv)
        key_value = project_key_value(tokens.index_select(1, live.rows))
        pool_tokens(project_query(tokens), ..., grid, heads, stride_q, live.stride,
                    key_value=key_value, key_value_grid=live.grid)
    """
    grid = _check.triple("live_tokens", "grid", grid)
    stride = _check.triple("live_tokens", "stride", stride)
    cells = [_live_cells(size, step, device) for size, step in zip(grid, stride, strict=True)]
    t, h, w = torch.meshgrid(*cells, indexing="ij")
    body = 1 + ((t * grid[1] + h) * grid[2] + w).flatten()
    strides = [min(step, 3) for step in stride]
    return LiveTokens(
        torch.cat((body.new_zeros(1), body)),
        (len(cells[0]), len(cells[1]), len(cells[2])),
        (strides[0], strides[1], strides[2]),
    )


def _live_cells(size: int, step: int, device: torch.device | str | None) -> Tensor:
    """Cells of an axis that are at most one from some multiple of the stride on the axis.

    Made of ranges, not of a mask: their number follows from the sizes, for tensors without memory, too.
    """
    runs = [range(0, size, step), range(1, size, step), range(step - 1, size - 1, step)]
    distinct = runs[:1] if step == 1 else runs[:2] if step == 2 else runs
    return (
        torch.cat([torch.arange(r.start, r.stop, step, device=device) for r in distinct if r]).sort().values
    )


def table_length(queries: int, keys: int) -> int:
    """Rows of an axis' table of relative positions."""
    return 2 * max(queries, keys) - 1
