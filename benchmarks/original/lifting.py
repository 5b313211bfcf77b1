"""Lifting of the two frame groups: attention (LADM), separable convolutions, or none; and the lifting loss.

All take tokens (B, T*H*W, C), row-major over (T, H, W), and return the lifting residual (B, H, W) and the
dynamic feature (B, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.original.embedding import SeparableConv3d
from benchmarks.original.layers import DropPath, mlp


class _Lifting(nn.Module):
    """Base of the three liftings: layouts, residual, and the weighted sum over tokens."""

    project_compress: nn.Linear

    def __init__(self, frames: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if frames < 2 or frames % 2:
            raise ValueError(f"frames: expected an even number of at least 2, got {frames}")
        self.frames, self.grid = frames, grid

    def _check(self, x: Tensor) -> None:
        height, width = self.grid
        if x.ndim != 3 or x.shape[1] != self.frames * height * width:
            raise ValueError(
                f"x: expected (B, {self.frames}*{height}*{width}, C) tokens, got shape {tuple(x.shape)}"
            )

    def _frames(self, x: Tensor) -> Tensor:
        """(B, K*H*W, C) -> (B, C, K, H*W)."""
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1, self.grid[0] * self.grid[1])

    def _volume(self, x: Tensor) -> Tensor:
        """(B, K*H*W, C) -> (B, C, K, H, W)."""
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1, *self.grid)

    def _residual(self, x: Tensor, static: Tensor) -> Tensor:
        """Frames averaged in pairs minus the static group (B, C, T/2, H, W), averaged over T/2 and C."""
        return (F.avg_pool3d(self._volume(x), (2, 1, 1)) - static).mean(dim=(1, 2))

    def _compress(self, tokens: Tensor) -> Tensor:
        return self.project_compress(tokens.transpose(1, 2)).squeeze(-1)


class LADM(_Lifting):
    """Lifting by cross attention: update, predict, and refinement of the dynamic group.

    update   Y_s = X_s + A(q_in=X_s, kv_in=X_d);  predict  Y_d = X_d - A(q_in=X_d, kv_in=Y_s), with
    A = Linear(softmax(q k^T / sqrt d) v + v). ``update_first=False`` predicts first, from X_s, and updates
    from Y_d. ``self_conditioned``: the query too comes from the group that A reads, and the residual is
    pooled to (H//2, W//2).
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        grid: tuple[int, int],
        split: nn.Module,
        heads: int = 8,
        update_first: bool = True,
        self_conditioned: bool = False,
        split_norm: bool = True,
        dropout: float = 0.0,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__(frames, grid)
        if channels % heads:
            raise ValueError(f"heads: {heads} do not divide {channels} channels")
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.update_first = update_first
        self.self_conditioned = self_conditioned
        tokens = grid[0] * grid[1]
        # Part of every stored model, never used in a forward.
        self.spatial_pos = nn.Parameter(torch.zeros(tokens, channels))
        self.temporal_pos = nn.Parameter(torch.zeros(frames, channels))
        self.class_pos = nn.Parameter(torch.zeros(channels))
        self.adapt_split = split
        self.xa_norm = nn.LayerNorm(channels) if split_norm else None
        self.xd_norm = nn.LayerNorm(channels) if split_norm else None
        self.q_a = nn.Linear(channels, channels)
        self.kv_d = nn.Linear(channels, 2 * channels)
        self.project_a = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))
        self.q_d = nn.Linear(channels, channels)
        self.kv_a = nn.Linear(channels, 2 * channels)
        self.project_d = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))
        self.out_norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))
        self.out_norm2 = nn.LayerNorm(channels)
        self.mlp = mlp(channels, 4 * channels, dropout)
        self.drop_path = DropPath(drop_path)
        self.project_compress = nn.Linear(frames // 2 * tokens, 1, bias=False)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Static and dynamic tokens (B, T/2*H*W, C), normalised if the split norms are there."""
        groups = self.adapt_split(self._frames(x))
        static, dynamic = (group.flatten(2).transpose(1, 2) for group in groups)
        if self.xa_norm is not None and self.xd_norm is not None:
            static, dynamic = self.xa_norm(static), self.xd_norm(dynamic)
        return static, dynamic

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, M, parts*C) -> (parts, B, heads, M, d)."""
        return x.reshape(x.shape[0], x.shape[1], parts, self.heads, -1).permute(2, 0, 3, 1, 4)

    def _update(self, query_input: Tensor, dynamic: Tensor) -> Tensor:
        return self._cross(self.q_a(query_input), self.kv_d(dynamic), self.project_a)

    def _predict(self, query_input: Tensor, static: Tensor) -> Tensor:
        return self._cross(self.q_d(query_input), self.kv_a(static), self.project_d)

    def _cross(self, query: Tensor, key_value: Tensor, project: nn.Module) -> Tensor:
        q = self._heads(query, 1)[0]
        k, v = self._heads(key_value, 2)
        weights = (torch.matmul(q, k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        out = torch.matmul(weights, v) + v
        return project(out.transpose(1, 2).flatten(2))

    def _self_attention(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(self.qkv(x), 3)
        weights = (torch.matmul(q, k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.project(torch.matmul(weights, v).transpose(1, 2).flatten(2))

    def _lift(self, static: Tensor, dynamic: Tensor) -> tuple[Tensor, Tensor]:
        if self.update_first:
            static = static + self._update(dynamic if self.self_conditioned else static, dynamic)
            dynamic = dynamic - self._predict(static if self.self_conditioned else dynamic, static)
        else:
            dynamic = dynamic - self._predict(static if self.self_conditioned else dynamic, static)
            static = static + self._update(dynamic if self.self_conditioned else static, dynamic)
        return static, dynamic

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        static, dynamic = self._lift(*self._split(x))
        residual = self._residual(x, self._volume(static))
        if self.self_conditioned:
            residual = F.adaptive_avg_pool2d(residual, (self.grid[0] // 2, self.grid[1] // 2))
        dynamic = dynamic + self.drop_path(self._self_attention(self.out_norm1(dynamic)))
        # No residual around this MLP: the original has none.
        dynamic = self.drop_path(self.mlp(self.out_norm2(dynamic)))
        return residual, self._compress(dynamic)


class ConvLifting(_Lifting):
    """Lifting of even and odd frames by separable convolutions: Y_s = X_s + U(X_d), Y_d = X_d - P(Y_s)."""

    def __init__(self, channels: int, frames: int, grid: tuple[int, int]) -> None:
        super().__init__(frames, grid)
        self.U = SeparableConv3d(channels, channels, kernel=3)
        self.P = SeparableConv3d(channels, channels, kernel=3)
        self.project_compress = nn.Linear(frames // 2 * grid[0] * grid[1], 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        volume = self._volume(x)
        static, dynamic = volume[:, :, 0::2], volume[:, :, 1::2]
        static = static + self.U(dynamic)
        dynamic = dynamic - self.P(static)
        return self._residual(x, static), self._compress(dynamic.flatten(2).transpose(1, 2))


class NoLifting(_Lifting):
    """The split alone: the dynamic feature is a weighted sum, with bias, of the dynamic group's tokens."""

    def __init__(self, frames: int, grid: tuple[int, int], split: nn.Module) -> None:
        super().__init__(frames, grid)
        self.adapt_split = split
        self.project_compress = nn.Linear(frames // 2 * grid[0] * grid[1], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        static, dynamic = self.adapt_split(self._frames(x))
        residual = self._residual(x, static.unflatten(3, self.grid))
        return residual, self._compress(dynamic.flatten(2).transpose(1, 2))


class LiftingLoss(nn.Module):
    """weight * sum over clips of mean smooth_l1(residual, 0), clip by clip: (B, H, W) -> (1,)."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, residual: Tensor) -> Tensor:
        total = residual.new_zeros(1)
        for clip in residual:
            total = total + F.smooth_l1_loss(clip, torch.zeros_like(clip))
        return self.weight * total
