"""Pyramid aggregation: earlier stages are brought to the grid of the last one and merged with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ifdd.modules.backbone import Grid, StageOutput
from ifdd.modules.children import apply_linear, lowered_layers
from ifdd.modules.convolution import Conv2d
from ifdd.modules.lowered import lowered_dtype


class PyramidAggregation(nn.Module):
    """y = W_merge [D_1(x_1), ..., D_k(x_k), x_last] with D_i a 3 x 3 convolution of each frame.

    D_i has stride, dilation and padding equal to the ratio r of the grids, so it reads every r-th position
    only: it is the plain 3 x 3 convolution of x_i[::r, ::r], and computed as such. With one stage its tokens
    pass unchanged and there are no weights.

    Args:
        channels: channels of the chosen stages, in order.
        grids: (T, H, W) of the chosen stages, in order.

    Raises:
        ValueError: a grid that is not a whole multiple of the last.
    """

    def __init__(self, channels: Sequence[int], grids: Sequence[Grid]) -> None:
        super().__init__()
        self.out_channels = channels[-1]
        self.grid = grids[-1]
        self.ratios = [grid[1] // self.grid[1] for grid in grids[:-1]]
        for grid, ratio in zip(grids, self.ratios, strict=False):
            if grid != (self.grid[0], self.grid[1] * ratio, self.grid[2] * ratio):
                raise ValueError(
                    f"PyramidAggregation: grid {grid} is not a whole multiple of the last, {self.grid}"
                )
        self.reduce = nn.ModuleList(
            Conv2d(width, width, kernel_size=3, padding=1, bias=False) for width in channels[:-1]
        )
        self.merge = nn.Linear(sum(channels), channels[-1], bias=False) if self.ratios else None

    def forward(self, stages: Sequence[StageOutput]) -> torch.Tensor:
        """Stage outputs (B, 1 + T*H_i*W_i, C_i) -> tokens (B, T*H*W, C) of the last grid, no class token."""
        last = stages[-1].tokens[:, 1:]
        if self.merge is None:
            return last
        with lowered_layers(last, *self.lowerable()):
            return self._merged(stages, last)

    def lowerable(self) -> list[nn.Module | None]:
        """The layers whose weights may be cast before the module runs."""
        return [*self.reduce, self.merge]

    def _merged(self, stages: Sequence[StageOutput], last: torch.Tensor) -> torch.Tensor:
        assert self.merge is not None
        # A norm that autocast runs leaves float32. Narrowed before they are joined, as the convolutions'
        # results are, the rows are not widened first.
        last = last.to(lowered_dtype(last) or last.dtype)
        parts = []
        for (tokens, grid), conv, ratio in zip(stages, self.reduce, self.ratios, strict=False):
            frames = tokens[:, 1:].unflatten(1, grid)[:, :, ::ratio, ::ratio]
            image = conv(frames.flatten(0, 1).permute(0, 3, 1, 2))
            rows = image.permute(0, 2, 3, 1).reshape(last.shape[0], last.shape[1], image.shape[1])
            parts.append(rows.to(last.dtype))
        return apply_linear(self.merge, torch.cat((*parts, last), dim=-1))
