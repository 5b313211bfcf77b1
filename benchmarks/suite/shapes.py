"""Shapes of the network, read from the network itself."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from ifdd import IFDD, IFDDConfig
from ifdd.modules.backbone import Grid, MultiscaleBlock
from ifdd.modules.ladm import LADM
from ifdd_kernels import _arguments, live_tokens
from ifdd_kernels._arguments import Arguments, Maker


@dataclass(frozen=True)
class BlockShape:
    """One block of the backbone; ``count`` consecutive ones share its shape."""

    label: str
    stage: int
    count: int
    grid: Grid
    q_grid: Grid
    k_grid: Grid
    stride_q: Grid
    stride_kv: Grid
    in_channels: int
    out_channels: int
    heads: int

    @property
    def head_dim(self) -> int:
        """d."""
        return self.out_channels // self.heads

    @property
    def tokens(self) -> int:
        """Tokens that enter, the class token included."""
        return 1 + math.prod(self.grid)


def live_pooling(make: Maker, block: BlockShape, batch: int = 1) -> Arguments:
    """Arguments of ``pool_tokens`` as the backbone calls it: keys and values of the tokens that a window
    covers, apart from the queries where some are left out.
    """
    live = live_tokens(block.grid, block.stride_kv, device="cpu")
    apart = live.grid if live.grid != block.grid else None
    stride_kv = live.stride if apart else block.stride_kv
    sizes = (block.heads, block.head_dim, block.stride_q, stride_kv)
    return _arguments.pool_tokens(make, batch, block.grid, *sizes, key_value_grid=apart)


@dataclass(frozen=True)
class NetworkShape:
    """The parts of a network that the cases need."""

    config: IFDDConfig
    blocks: tuple[BlockShape, ...]
    #: Frames, grid and channels of the tokens that are split and lifted, and the lifting's heads.
    frames: int
    grid: tuple[int, int]
    channels: int
    heads: int


@functools.cache
def network_shape(config: IFDDConfig) -> NetworkShape:
    """Shapes of ``IFDD(config)``, without its memory."""
    with torch.device("meta"):
        model = IFDD(config)
    ladm = model.lifting
    assert isinstance(ladm, LADM)
    blocks = []
    stage = 0
    for number, block in enumerate(model.backbone.blocks):
        assert isinstance(block, MultiscaleBlock)
        blocks.append(_block_shape(number, stage, block))
        if number in model.backbone.stage_ends:
            stage += 1
    heads = ladm.updater.heads
    return NetworkShape(config, _merge(blocks), ladm.frames, ladm.grid, ladm.channels, heads)


def _block_shape(number: int, stage: int, block: MultiscaleBlock) -> BlockShape:
    a = block.attention
    grids = (a.grid, a.q_grid, a.k_grid, a.stride_q, a.stride_kv)
    return BlockShape(str(number), stage, 1, *grids, block.in_channels, a.qkv.out_features // 3, a.heads)


def _merge(blocks: list[BlockShape]) -> tuple[BlockShape, ...]:
    """Consecutive blocks of one shape as one, labelled "4-7"."""
    merged: list[BlockShape] = []
    for block in blocks:
        last = merged[-1] if merged else None
        if last is not None and replace(block, label=last.label, stage=last.stage, count=last.count) == last:
            label = f"{last.label.partition('-')[0]}-{block.label}"
            merged[-1] = replace(last, label=label, count=last.count + 1)
        else:
            merged.append(block)
    return tuple(merged)
