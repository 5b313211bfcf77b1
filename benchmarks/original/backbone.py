"""MViTv2 in eager PyTorch: pooling attention with decomposed relative positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.original.layers import DropPath, mlp

Grid = tuple[int, int, int]
"""Sizes along time, height and width."""

EPS = 1e-6


class TokenPool(nn.Module):
    """Depthwise 3x3x3 convolution of the grid tokens, then LayerNorm of all tokens, class token included.

    (B, heads, 1 + T*H*W, d) -> (B, heads, 1 + T'*H'*W', d); the weights (d, 1, 3, 3, 3) are shared by the
    heads.
    """

    def __init__(self, head_dim: int, stride: Grid) -> None:
        super().__init__()
        self.pool = nn.Conv3d(
            head_dim, head_dim, kernel_size=3, stride=stride, padding=1, groups=head_dim, bias=False
        )
        self.norm_act = nn.Sequential(nn.LayerNorm(head_dim, eps=EPS))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        batch, heads, _, head_dim = x.shape
        class_token, tokens = x[:, :, :1], x[:, :, 1:]
        volume = tokens.reshape(batch * heads, *grid, head_dim).permute(0, 4, 1, 2, 3).contiguous()
        volume = self.pool(volume)
        t, h, w = volume.shape[2:]
        tokens = volume.reshape(batch, heads, head_dim, t * h * w).transpose(2, 3)
        return self.norm_act(torch.cat((class_token, tokens), dim=2)), (t, h, w)


def relative_table(table: Tensor, queries: int, keys: int) -> Tensor:
    """Rows of ``table`` (L, d) for every pair of one axis: (queries, keys, d).

    Row trunc(q * max(K/Q, 1) - (k + 1 - K) * max(Q/K, 1)); a table of another length than 2 max(Q, K) - 1 is
    interpolated to it. The index is built on the CPU in every call: the formulation to be measured does so.
    """
    length = 2 * max(queries, keys) - 1
    if table.shape[0] != length:
        table = F.interpolate(table.t().unsqueeze(0), size=length, mode="linear").squeeze(0).t()
    query_index = torch.arange(queries)[:, None] * max(keys / queries, 1.0)
    key_index = (torch.arange(keys)[None, :] + 1 - keys) * max(queries / keys, 1.0)
    return table[(query_index - key_index).long()]


def add_relative_position(
    scores: Tensor, q: Tensor, q_grid: Grid, k_grid: Grid, tables: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Add q . (R_t + R_h + R_w) in place to the scores of the grid tokens; the class row and column get none.

    ``scores`` (B, heads, 1 + Nq, 1 + Nk); ``q`` (B, heads, 1 + Nq, d), not scaled; ``tables`` of time,
    height, width.
    """
    batch, heads, _, head_dim = q.shape
    grid_q = q[:, :, 1:].reshape(batch, heads, *q_grid, head_dim)
    along_t, along_h, along_w = (
        relative_table(table, queries, keys)
        for table, queries, keys in zip(tables, q_grid, k_grid, strict=True)
    )
    bias_t = torch.einsum("bnthwd,tkd->bnthwk", grid_q, along_t)
    bias_h = torch.einsum("bnthwd,hkd->bnthwk", grid_q, along_h)
    bias_w = torch.einsum("bnthwd,wkd->bnthwk", grid_q, along_w)
    bias = bias_t[..., :, None, None] + bias_h[..., None, :, None] + bias_w[..., None, None, :]
    scores[:, :, 1:, 1:] += bias.flatten(5).flatten(2, 4)
    return scores


class PooledAttention(nn.Module):
    """Attention on pooled q, k, v: (B, 1+THW, C_in) -> (B, 1+T'H'W', C_out), and the new grid."""

    def __init__(
        self,
        grid: Grid,
        in_channels: int,
        out_channels: int,
        heads: int,
        stride_q: Grid,
        stride_kv: Grid,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if out_channels % heads:
            raise ValueError(f"heads: {heads} do not divide {out_channels} channels")
        head_dim = out_channels // heads
        self.heads = heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(in_channels, 3 * out_channels)
        self.project = nn.Sequential(nn.Linear(out_channels, out_channels), nn.Dropout(dropout))
        self.pool_q = TokenPool(head_dim, stride_q)
        self.pool_k = TokenPool(head_dim, stride_kv)
        self.pool_v = TokenPool(head_dim, stride_kv)
        rows = [
            2 * max(size // q, size // kv) - 1 for size, q, kv in zip(grid, stride_q, stride_kv, strict=True)
        ]
        self.rel_pos_t, self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(count, head_dim), std=0.02)) for count in rows
        )

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).transpose(1, 3)
        q, k, v = qkv.unbind(dim=2)
        k, k_grid = self.pool_k(k, grid)
        v, _ = self.pool_v(v, grid)
        q, q_grid = self.pool_q(q, grid)
        scores = torch.matmul(q * self.scale, k.transpose(2, 3))
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        scores = add_relative_position(scores, q, q_grid, k_grid, tables)
        out = torch.matmul(scores.softmax(dim=-1), v)
        out[:, :, 1:] += q[:, :, 1:]
        return self.project(out.transpose(1, 2).flatten(2)), q_grid


class MultiscaleBlock(nn.Module):
    """One MViTv2 block: pooled attention and MLP, each behind a LayerNorm and with stochastic depth."""

    def __init__(
        self,
        grid: Grid,
        in_channels: int,
        out_channels: int,
        heads: int,
        stride_q: Grid = (1, 1, 1),
        stride_kv: Grid = (1, 1, 1),
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels, eps=EPS)
        self.norm2 = nn.LayerNorm(out_channels, eps=EPS)
        self.attn = PooledAttention(grid, in_channels, out_channels, heads, stride_q, stride_kv, dropout)
        self.mlp = mlp(out_channels, 4 * out_channels, dropout)
        self.drop_path = DropPath(drop_path)
        self.project = nn.Linear(in_channels, out_channels) if in_channels != out_channels else None
        self.pool_skip: nn.MaxPool3d | None = None
        if max(stride_q) > 1:
            kernel = tuple(s + 1 if s > 1 else 1 for s in stride_q)
            self.pool_skip = nn.MaxPool3d(kernel, stride=stride_q, padding=tuple(k // 2 for k in kernel))

    def _skip(self, x: Tensor, grid: Grid) -> Tensor:
        if self.pool_skip is None:
            return x
        class_token, tokens = x[:, :1], x[:, 1:]
        volume = tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid)
        tokens = self.pool_skip(volume).flatten(2).transpose(1, 2)
        return torch.cat((class_token, tokens), dim=1)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        attended, new_grid = self.attn(normed, grid)
        skip = self._skip(x if self.project is None else self.project(normed), grid)
        x = skip + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x))), new_grid


class ClassToken(nn.Module):
    """Puts a learned token in front of the others; the network has no absolute position embedding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat((self.class_token.expand(tokens.shape[0], 1, -1), tokens), dim=1)


class MultiscaleBackbone(nn.Module):
    """MViTv2 that returns the tokens of every stage, class token included, and their grids.

    Input (B, C, T, H, W). Stage i has ``depths[i]`` blocks of ``embed_dim * 2**i`` channels and ``heads[i]``
    heads; the first block of stages 1.. halves height and width. Keys and values are strided by ``kv_stride``
    in stage 0 and by half as much in each stage that follows.
    """

    def __init__(
        self,
        grid: Grid,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 2, 5, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        kv_stride: int = 8,
        dropout: float = 0.0,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads):
            raise ValueError(f"heads: expected one per stage, {len(depths)}, got {len(heads)}")
        self.pos_encoding = ClassToken(embed_dim)
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        self.grids: list[Grid] = []
        self.channels = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = torch.linspace(0.0, drop_path, sum(depths)).tolist()
        channels = embed_dim
        for stage, (depth, stage_heads) in enumerate(zip(depths, heads, strict=True)):
            stride = max(kv_stride // 2**stage, 1)
            for block in range(depth):
                step = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(
                    MultiscaleBlock(
                        grid,
                        channels,
                        self.channels[stage],
                        stage_heads,
                        stride_q=(1, step, step),
                        stride_kv=(1, stride, stride),
                        dropout=dropout,
                        drop_path=rates[len(self.blocks)],
                    )
                )
                channels = self.channels[stage]
                grid = (grid[0], -(-grid[1] // step), -(-grid[2] // step))
            self.stage_ends.append(len(self.blocks) - 1)
            self.grids.append(grid)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Grid]]:
        grid: Grid = (x.shape[2], x.shape[3], x.shape[4])
        tokens = self.pos_encoding(x.flatten(2).transpose(1, 2))
        stages = []
        for index, block in enumerate(self.blocks):
            tokens, grid = block(tokens, grid)
            if index in self.stage_ends:
                last = index == len(self.blocks) - 1
                stages.append((self.norm(tokens) if last else tokens, grid))
        return stages
