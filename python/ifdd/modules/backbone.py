"""MViTv2: four stages of multiscale attention blocks over space-time tokens with a class token.

Source: Li et al., "MViTv2: Improved Multiscale Vision Transformers" (CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ifdd.config import STAGE_COUNT, STAGE_HEADS
from ifdd.modules.drop_path import DropPath
from ifdd.modules.linear import Linear
from ifdd.modules.recompute import norm_again
from ifdd_kernels import gelu_linear, linear, max_pool_tokens, pool_tokens, pooled_attention
from ifdd_kernels.grids import live_tokens, pooled_grid, table_length

Grid = tuple[int, int, int]

NORM_EPS = 1e-6
INIT_STD = 0.02
KEY_VALUE_STRIDES = (8, 4, 2, 1)
"""Spatial stride of the key and value pools in each stage."""


class MultiscaleAttention(nn.Module):
    """Attention on pooled queries, keys and values with decomposed relative positions and residual queries.

    `ifdd_kernels.pool_tokens` and `ifdd_kernels.pooled_attention` define the two steps. Tokens that lie in no
    pooling window of the keys and values (7 of 8 at stride 8) are projected to queries only.
    """

    live_rows: torch.Tensor

    def __init__(
        self, grid: Grid, in_channels: int, out_channels: int, heads: int, stride_q: Grid, stride_kv: Grid
    ) -> None:
        super().__init__()
        head_dim = out_channels // heads
        self.grid, self.heads, self.stride_q, self.stride_kv = grid, heads, stride_q, stride_kv
        self.q_grid, self.k_grid = pooled_grid(grid, stride_q), pooled_grid(grid, stride_kv)
        live = live_tokens(grid, stride_kv)
        self.live_grid, self.live_stride = live.grid, live.stride
        self.register_buffer("live_rows", live.rows, persistent=False)
        self.qkv = Linear(in_channels, 3 * out_channels)
        # These hold the weights that `pool_tokens` takes; they are not called.
        self.pool_q, self.pool_k, self.pool_v = (
            nn.Conv3d(head_dim, head_dim, 3, padding=1, groups=head_dim, bias=False) for _ in range(3)
        )
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(head_dim, eps=NORM_EPS) for _ in range(3))
        rows_t, rows_h, rows_w = map(table_length, self.q_grid, self.k_grid)
        self.table_h = nn.Parameter(torch.empty(rows_h, head_dim))
        self.table_w = nn.Parameter(torch.empty(rows_w, head_dim))
        self.table_t = nn.Parameter(torch.empty(rows_t, head_dim))
        self.output = Linear(out_channels, out_channels)
        for table in (self.table_h, self.table_w, self.table_t):
            nn.init.trunc_normal_(table, std=INIT_STD)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MultiscaleAttention:
        super()._apply(fn, recurse)
        # Rows are a constant that no state dict restores after `to_empty`.
        self.live_rows = live_tokens(self.grid, self.stride_kv, self.live_rows.device).rows
        return self

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, 1 + T*H*W, C_in) -> (B, 1 + Nq, C_out)."""
        qkv, key_value = self._project(tokens)
        q, k, v = pool_tokens(
            qkv,
            self.pool_q.weight,
            self.pool_k.weight,
            self.pool_v.weight,
            (self.norm_q.weight, self.norm_q.bias),
            (self.norm_k.weight, self.norm_k.bias),
            (self.norm_v.weight, self.norm_v.bias),
            grid=self.grid,
            num_heads=self.heads,
            stride_q=self.stride_q,
            stride_kv=self.live_stride,
            key_value=key_value,
            key_value_grid=self.live_grid,
            eps=NORM_EPS,
        )
        mixed = pooled_attention(
            q, k, v, self.table_h, self.table_w, self.table_t, q_grid=self.q_grid, k_grid=self.k_grid
        )
        out: torch.Tensor = self.output(mixed)
        return out

    def _project(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Packed queries, keys and values; the last two apart where they come from fewer tokens."""
        if self.live_grid == self.grid:
            return self.qkv(tokens), None
        rows = (self.output.in_features, 2 * self.output.in_features)
        weight_q, weight_kv = self.qkv.weight.split(rows)
        bias_q, bias_kv = self.qkv.bias.split(rows)
        live = tokens.index_select(1, self.live_rows)
        return linear(tokens, weight_q, bias_q), linear(live, weight_kv, bias_kv)


class MultiscaleBlock(nn.Module):
    """One MViTv2 block: x = s + DropPath(Attention(LN(x))), then x + DropPath(MLP(LN(x))).

    The shortcut s is x, or Linear(LN(x)) where the width changes, max-pooled where the queries are strided
    (kernel stride + 1; the class token is kept).

    Args:
        grid: (T, H, W) of the input tokens.
        in_channels, out_channels: widths before and after the attention.
        heads: attention heads; must divide `out_channels`.
        stride_q, stride_kv: (t, h, w) strides of the query pool and of the key and value pools.
        drop_path: stochastic depth rate of both branches.

    Raises:
        ValueError: sizes or strides below 1, or heads that do not divide the width.
    """

    def __init__(
        self,
        grid: Grid,
        in_channels: int,
        out_channels: int,
        heads: int,
        stride_q: Grid = (1, 1, 1),
        stride_kv: Grid = (1, 1, 1),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        grid, stride_q, stride_kv = (
            _triple(name, value)
            for name, value in (("grid", grid), ("stride_q", stride_q), ("stride_kv", stride_kv))
        )
        if min(in_channels, out_channels, heads) < 1 or out_channels % heads:
            raise ValueError(
                "MultiscaleBlock: heads must divide out_channels and all be positive; got "
                f"in_channels={in_channels}, out_channels={out_channels}, heads={heads}"
            )
        self.grid, self.stride_q = grid, stride_q
        self.out_grid = pooled_grid(grid, stride_q)
        self.in_channels = in_channels
        self.attention_norm = nn.LayerNorm(in_channels, eps=NORM_EPS)
        self.attention = MultiscaleAttention(grid, in_channels, out_channels, heads, stride_q, stride_kv)
        self.shortcut = Linear(in_channels, out_channels) if in_channels != out_channels else None
        self.mlp_norm = nn.LayerNorm(out_channels, eps=NORM_EPS)
        self.mlp_expand = Linear(out_channels, 4 * out_channels)
        self.mlp_contract = nn.Linear(4 * out_channels, out_channels)
        self.drop_path = DropPath(drop_path)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: torch.Tensor, checkpointed: bool = False) -> tuple[torch.Tensor, Grid]:
        """(B, 1 + T*H*W, C_in) -> (B, 1 + T'*H'*W', C_out) and the grid (T', H', W').

        Backward normalises the tokens of the MLP again, unless the whole block is `checkpointed`.

        Raises:
            ValueError: tokens of another shape than the block was made for.
        """
        count = 1 + self.grid[0] * self.grid[1] * self.grid[2]
        if tokens.ndim != 3 or tokens.shape[1] != count or tokens.shape[2] != self.in_channels:
            raise ValueError(
                f"MultiscaleBlock: tokens must be (B, {count}, {self.in_channels}) for grid {self.grid}; "
                f"got {tuple(tokens.shape)}"
            )
        normed = self.attention_norm(tokens)
        shortcut = tokens if self.shortcut is None else self.shortcut(normed)
        if max(self.stride_q) > 1:
            shortcut = max_pool_tokens(shortcut, self.grid, self.stride_q)
        tokens = shortcut + self.drop_path(self.attention(normed))
        normed = self.mlp_norm(tokens)
        with nullcontext() if checkpointed else norm_again(self.mlp_norm, tokens, normed):
            hidden = self.mlp_expand(normed)
        mlp = gelu_linear(hidden, self.mlp_contract.weight, self.mlp_contract.bias)
        return tokens + self.drop_path(mlp), self.out_grid


class StageOutput(NamedTuple):
    """Tokens (B, 1 + T*H*W, C) after a stage, class token first, and their grid (T, H, W)."""

    tokens: torch.Tensor
    grid: Grid


class MultiscaleBackbone(nn.Module):
    """The four stages. Channels, heads and grids change in the first block of stages 1, 2 and 3.

    Args:
        grid: (T, H, W) of the embedded tokens.
        stage_channels: channels of the four stages.
        depths: blocks of the four stages.
        drop_path: rate of the last block; the rate rises linearly from 0 over the blocks.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(
        self,
        grid: Grid,
        stage_channels: Sequence[int],
        depths: Sequence[int],
        drop_path: float = 0.2,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.class_token = nn.Parameter(torch.empty(stage_channels[0]))
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        count = sum(depths)
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        self.stage_grids: list[Grid] = []
        channels = stage_channels[0]
        for stage, depth in enumerate(depths):
            for index in range(depth):
                step = 2 if stage > 0 and index == 0 else 1
                # One stride for the whole stage, though its first block still sees the larger grid.
                key_step = KEY_VALUE_STRIDES[stage]
                block = MultiscaleBlock(
                    grid,
                    channels,
                    stage_channels[stage],
                    STAGE_HEADS[stage],
                    stride_q=(1, step, step),
                    stride_kv=(1, key_step, key_step),
                    drop_path=drop_path * len(self.blocks) / max(count - 1, 1),
                )
                self.blocks.append(block)
                grid, channels = block.out_grid, stage_channels[stage]
            self.stage_ends.append(len(self.blocks) - 1)
            self.stage_grids.append(grid)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(
        self, tokens: torch.Tensor, stages: Collection[int] = range(STAGE_COUNT)
    ) -> dict[int, StageOutput]:
        """Embedded tokens (B, T*H*W, C) -> the outputs of the asked stages; the last stage is normalised."""
        class_token = self.class_token.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        tokens = torch.cat((class_token, tokens), dim=1)
        outputs: dict[int, StageOutput] = {}
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            if recompute:
                tokens, grid = checkpoint(block, tokens, True, use_reentrant=False)
            else:
                tokens, grid = block(tokens)
            if index in self.stage_ends and (stage := self.stage_ends.index(index)) in stages:
                last = stage == len(self.stage_ends) - 1
                outputs[stage] = StageOutput(self.norm(tokens) if last else tokens, grid)
        return outputs


def _triple(name: str, value: Sequence[int]) -> Grid:
    if len(value) != 3 or min(value) < 1:
        raise ValueError(f"MultiscaleBlock: {name} must be three integers of at least 1; got {tuple(value)}")
    return value[0], value[1], value[2]
