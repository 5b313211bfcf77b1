"""Shapes of the network, read from the network itself."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

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
    """What of a network the cases need."""

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
    attention = block.attention
    return BlockShape(
        str(number),
        stage,
        1,
        attention.grid,
        attention.q_grid,
        attention.k_grid,
        attention.stride_q,
        attention.stride_kv,
        block.in_channels,
        attention.qkv.out_features // 3,
        attention.heads,
    )


def _merge(blocks: list[BlockShape]) -> tuple[BlockShape, ...]:
    """Consecutive blocks of one shape as one, labelled "4-7"."""
    merged: list[BlockShape] = []
    for block in blocks:
        last = merged[-1] if merged else None
        if last is not None and _same(last, block):
            label = f"{last.label.partition('-')[0]}-{block.label}"
            merged[-1] = BlockShape(label, last.stage, last.count + 1, *_sizes(last))
        else:
            merged.append(block)
    return tuple(merged)


def _sizes(block: BlockShape) -> tuple[Grid, Grid, Grid, Grid, Grid, int, int, int]:
    b = block
    return (
        b.grid, b.q_grid, b.k_grid, b.stride_q, b.stride_kv, b.in_channels, b.out_channels, b.heads
    )  # fmt: skip


def _same(a: BlockShape, b: BlockShape) -> bool:
    return _sizes(a) == _sizes(b)
