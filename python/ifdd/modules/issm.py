"""ISSM, the learned split of a clip into a static and a dynamic group of frames, and the two fixed splits."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ifdd.config import INDEX_SAMPLINGS, SPLITS
from ifdd.modules.children import call_unrounded, weight_and_bias, weights, without_autocast
from ifdd_kernels import frame_correlation, split_frames, split_index, static_dynamic_split, topk_split_index
from ifdd_kernels._serialised import serialisable
from ifdd_kernels.reference._common import pool_frames
from ifdd_kernels.reference.split_index import positions

INIT_STD = 0.03
REACH = 2.0
NORM_EPS = 1e-5


@serialisable
class FrameIndexes(NamedTuple):
    """Which frames form the groups.

    `static`, `dynamic`: (B, T/2), fractional (float) or integer (int64) frame indexes;
    `correlation`: (B, T, T) of the frame tokens, None where the split has none.
    """

    static: torch.Tensor
    dynamic: torch.Tensor
    correlation: torch.Tensor | None


def _fused_norms(static_norm: nn.Module | None, dynamic_norm: nn.Module | None) -> dict[str, Any] | None:
    """Arguments of the ops for the norms of both groups; None where these have to be called."""
    if static_norm is None and dynamic_norm is None:
        return {"static_norm": None, "dynamic_norm": None, "eps": NORM_EPS}
    static, dynamic = (weight_and_bias(norm, nn.LayerNorm) for norm in (static_norm, dynamic_norm))
    if static is None or dynamic is None:
        return None
    assert static_norm is not None
    assert dynamic_norm is not None
    if static_norm.eps != dynamic_norm.eps:
        return None
    return {"static_norm": static, "dynamic_norm": dynamic, "eps": static_norm.eps}


class FrameSplit(nn.Module):
    """Base of the splits: `indexes` decides, `ifdd_kernels.split_frames` samples."""

    aligned = False

    def __init__(self, frames: int, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        if frames < 2 or frames % 2:
            raise ValueError(f"{type(self).__name__}: frames must be even and at least 2; got {frames}")
        if len(grid) != 2 or min(grid) < 1 or channels < 1:
            raise ValueError(
                f"{type(self).__name__}: grid must be (H, W) and channels positive; got {grid} and {channels}"
            )
        self.frames, self.grid, self.channels = frames, (grid[0], grid[1]), channels

    def indexes(self, frames: torch.Tensor) -> FrameIndexes:
        """Frames (B, T, N, C) -> the indexes of both groups."""
        raise NotImplementedError

    def split(
        self,
        frames: torch.Tensor,
        static_norm: nn.Module | None = None,
        dynamic_norm: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, FrameIndexes]:
        """The two groups (B, T/2, N, C), normalised over C where norms are given, and their indexes.

        Norms that are plain LayerNorm layers of one eps are fused with the sampling, others are called.

        Raises:
            ValueError: frames of another shape than the split was made for.
        """
        self._check(frames)
        norms = _fused_norms(static_norm, dynamic_norm)
        static, dynamic, indexes = self._sample(frames, norms or {})
        if norms is None:
            static = static if static_norm is None else static_norm(static)
            dynamic = dynamic if dynamic_norm is None else dynamic_norm(dynamic)
        return static, dynamic, indexes

    def _sample(
        self, frames: torch.Tensor, norms: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, FrameIndexes]:
        """Both groups and their indexes; `norms` are arguments of the op."""
        indexes = self.indexes(frames)
        groups = split_frames(frames, indexes.static, indexes.dynamic, **norms, aligned=self.aligned)
        return *groups, indexes

    def _check(self, frames: torch.Tensor) -> None:
        expected = (self.frames, self.grid[0] * self.grid[1], self.channels)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != expected:
            raise ValueError(
                f"{type(self).__name__}: frames must be (B, {', '.join(map(str, expected))}); "
                f"got {tuple(frames.shape)}"
            )

    def forward(self, frames: torch.Tensor, with_indexes: bool = False) -> tuple[Any, ...]:
        """Frames (B, T, N, C) -> static and dynamic group, each (B, T/2, N, C).

        `with_indexes` adds their `FrameIndexes`.
        """
        groups = self.split(frames)
        return groups if with_indexes else groups[:2]


class ISSM(FrameSplit):
    """Inter-frame static-dynamic splitting: learned fractional indexes from the correlation of the frames.

    With M = z z^T / C the correlation of the frame tokens z, the indexes are
    (0, 2, ...) + 2 tanh(W_s vec softmax(M)) and (1, 3, ...) + 2 tanh(W_d vec softmax(-M));
    `ifdd_kernels.split_index` defines them, `ifdd_kernels.split_frames` the interpolation. The op reads the
    weights of the three linear layers; where one of them is more than that it is called (docs/modules.md).

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168.

    Args:
        frames: T, even.
        grid: (H, W) of a frame's tokens, N = H * W.
        channels: C.
        pool: side S of the grid a frame is pooled to; also the number of token channels.
        index_sampling: `original` or `aligned`, see `ifdd.IFDDConfig`.

    Raises:
        ValueError: odd T, sizes below 1 or an unknown `index_sampling`.
    """

    def __init__(
        self,
        frames: int,
        grid: tuple[int, int],
        channels: int,
        pool: int = 7,
        index_sampling: str = "original",
    ) -> None:
        super().__init__(frames, grid, channels)
        if pool < 1:
            raise ValueError(f"ISSM: pool must be at least 1; got {pool}")
        if index_sampling not in INDEX_SAMPLINGS:
            raise ValueError(f"ISSM: index_sampling must be one of {INDEX_SAMPLINGS}; got {index_sampling!r}")
        self.pool = pool
        self.aligned = index_sampling == "aligned"
        self.tokenizer = nn.Linear(channels, pool)
        self.static_offset = nn.Linear(frames * frames, frames // 2, bias=False)
        self.dynamic_offset = nn.Linear(frames * frames, frames // 2, bias=False)
        nn.init.trunc_normal_(self.static_offset.weight, std=INIT_STD)
        nn.init.trunc_normal_(self.dynamic_offset.weight, std=INIT_STD)

    def _arguments(self, frames: torch.Tensor) -> tuple[Any, ...] | None:
        """The first arguments of both ops; None if a child module has to be called."""
        tokenizer = weights(self.tokenizer, nn.Linear)
        static = weights(self.static_offset, nn.Linear)
        dynamic = weights(self.dynamic_offset, nn.Linear)
        if tokenizer is None or static is None or dynamic is None:
            return None
        if tokenizer[1] is None or static[1] is not None or dynamic[1] is not None:
            return None
        return frames, self.grid, *tokenizer, static[0], dynamic[0], self.pool

    def indexes(self, frames: torch.Tensor) -> FrameIndexes:
        """Frames (B, T, N, C) -> fractional indexes (B, T/2) of both groups, correlation (B, T, T)."""
        arguments = self._arguments(frames)
        if arguments is None:
            return self._indexes_by_calls(frames)
        found = split_index(*arguments, reach=REACH)
        return FrameIndexes(found.static_index, found.dynamic_index, found.correlation)

    def _indexes_by_calls(self, frames: torch.Tensor) -> FrameIndexes:
        """As :meth:`indexes`, every child called; no result of theirs is rounded by autocast either."""
        with without_autocast(frames):
            pooled = pool_frames(frames, *self.grid, self.pool)
            tokens = F.gelu(call_unrounded(self.tokenizer, pooled)).mT.flatten(2)
            correlation = frame_correlation(tokens, 1.0 / self.channels)
            static, dynamic = positions(
                correlation,
                partial(call_unrounded, self.static_offset),
                partial(call_unrounded, self.dynamic_offset),
                REACH,
            )
        return FrameIndexes(static, dynamic, correlation)

    def _sample(
        self, frames: torch.Tensor, norms: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, FrameIndexes]:
        """By the one op for both steps, where nothing has to be called in between."""
        arguments = self._arguments(frames)
        if arguments is None or type(self).indexes is not ISSM.indexes:
            return super()._sample(frames, norms)
        found = static_dynamic_split(*arguments, **norms, reach=REACH, aligned=self.aligned)
        return found.static, found.dynamic, FrameIndexes(*found[2:])


class TopKSplit(FrameSplit):
    """Hard selection: the T/2 frames most correlated with all others are static, the rest dynamic.

    `ifdd_kernels.topk_split_index` defines the scores. Gradients reach the gathered frames only.

    Args:
        frames, grid, channels, pool: as for `ISSM`.
        order_prior: adds 1 to the score of even frames.

    Raises:
        ValueError: odd T, or sizes below 1.
    """

    def __init__(
        self, frames: int, grid: tuple[int, int], channels: int, pool: int = 7, order_prior: bool = False
    ) -> None:
        super().__init__(frames, grid, channels)
        if pool < 1:
            raise ValueError(f"TopKSplit: pool must be at least 1; got {pool}")
        self.pool, self.order_prior = pool, order_prior

    def indexes(self, frames: torch.Tensor) -> FrameIndexes:
        """Frames (B, T, N, C) -> ascending int64 indexes (B, T/2) of both groups."""
        found = topk_split_index(frames, self.grid, self.pool, order_prior=self.order_prior)
        return FrameIndexes(found.static_index, found.dynamic_index, None)


class EvenOddSplit(FrameSplit):
    """The lazy wavelet: even frames are static, odd frames dynamic. No weights.

    Args:
        frames, grid, channels: as for `ISSM`.
    """

    def indexes(self, frames: torch.Tensor) -> FrameIndexes:
        """Frames (B, T, N, C) -> (0, 2, ...) and (1, 3, ...), int64 (B, T/2)."""
        order = torch.arange(self.frames, device=frames.device).expand(frames.shape[0], -1)
        return FrameIndexes(order[:, 0::2], order[:, 1::2], None)


def make_split(
    split: str,
    frames: int,
    grid: tuple[int, int],
    channels: int,
    pool: int = 7,
    index_sampling: str = "original",
    topk_order_prior: bool = False,
) -> FrameSplit:
    """The split called `interpolate`, `topk` or `even_odd`.

    Raises:
        ValueError: another name.
    """
    if split == "interpolate":
        return ISSM(frames, grid, channels, pool, index_sampling)
    if split == "topk":
        return TopKSplit(frames, grid, channels, pool, topk_order_prior)
    if split == "even_odd":
        return EvenOddSplit(frames, grid, channels)
    raise ValueError(f"split must be one of {SPLITS}; got {split!r}")
