"""The classes of SlowFast's MViT, which no package ships, for tests of what is told by class and attributes.

Names, parameters, settings, shapes and the order of operations are those of the repository's
`slowfast/models/attention.py` and `common.py` since MViTv2; the code is not. A checkout that can be imported
is taken in place of it.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION, COMMON = "slowfast.models.attention", "slowfast.models.common"


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        drawn = torch.rand([len(x)] + [1] * (x.dim() - 1), dtype=x.dtype)
        return x / keep * (keep + drawn).floor()


class Mlp(nn.Module):
    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, act_layer: Any, drop_rate: float
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features)
        if drop_rate > 0:
            self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self._dropped(self.act(self.fc1(x)))
        return self._dropped(self.fc2(hidden))

    def _dropped(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.drop_rate > 0 else x


def pooled(
    x: Tensor, pool: nn.Module | None, grid: Any, has_cls: bool, norm: nn.Module | None = None
) -> tuple[Tensor, Any]:
    """(B, h, [1 +] T*H*W, C) behind a pool of volumes and a norm of tokens; the class token is not pooled."""
    if pool is None:
        return x, grid
    first, body = x[:, :, : int(has_cls)], x[:, :, int(has_cls) :]
    volume = pool(body.flatten(0, 1).mT.unflatten(2, list(grid)))
    tokens = volume.flatten(2).mT.unflatten(0, x.shape[:2])
    tokens = torch.cat((first, tokens), 2)
    return (tokens if norm is None else norm(tokens)), list(volume.shape[2:])


def positions(query: Tensor, table: Tensor, queries: int, keys: int) -> Tensor:
    """(B, h, ..., queries, C) on the axis before the last -> (B, h, ..., queries, keys)."""
    rows = 2 * max(queries, keys) - 1
    if len(table) != rows:
        table = F.interpolate(table.T[None], size=rows, mode="linear")[0].T
    of_query, of_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    places = torch.arange(queries)[:, None] * of_query - torch.arange(keys) * of_key + (keys - 1) * of_key
    return (query[..., None, :] * table[places.long()]).sum(-1)


class MultiScaleAttention(nn.Module):
    def __init__(
        self,
        dim: int,
        dim_out: int,
        input_size: Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        kernel_q: Sequence[int] = (1, 1, 1),
        kernel_kv: Sequence[int] = (1, 1, 1),
        stride_q: Sequence[int] = (1, 1, 1),
        stride_kv: Sequence[int] = (1, 1, 1),
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        has_cls_embed: bool = True,
        mode: str = "conv",
        pool_first: bool = False,
        rel_pos_spatial: bool = False,
        rel_pos_temporal: bool = False,
        residual_pooling: bool = False,
        separate_qkv: bool = False,
    ) -> None:
        super().__init__()
        self.pool_first, self.separate_qkv, self.drop_rate = pool_first, separate_qkv, drop_rate
        self.num_heads, self.dim_out, self.has_cls_embed, self.mode = num_heads, dim_out, has_cls_embed, mode
        head_dim = dim_out // num_heads
        self.scale = head_dim**-0.5
        if pool_first or separate_qkv:
            self.q, self.k, self.v = (nn.Linear(dim, dim_out, bias=qkv_bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        if drop_rate > 0:
            self.proj_drop = nn.Dropout(drop_rate)
        channels = (dim if pool_first else dim_out) // num_heads
        sizes = ("q", kernel_q, stride_q), ("k", kernel_kv, stride_kv), ("v", kernel_kv, stride_kv)
        for part, kernel, stride in sizes:
            self._add_pool(part, tuple(kernel), tuple(stride), channels, norm_layer)
        self.rel_pos_spatial, self.rel_pos_temporal = rel_pos_spatial, rel_pos_temporal
        if rel_pos_spatial:
            rows = 2 * max(input_size[1] // stride_q[1], input_size[1] // stride_kv[1]) - 1
            self.rel_pos_h = nn.Parameter(torch.randn(rows, head_dim) * 0.02)
            self.rel_pos_w = nn.Parameter(torch.randn(rows, head_dim) * 0.02)
        if rel_pos_temporal:
            self.rel_pos_t = nn.Parameter(torch.randn(2 * input_size[0] - 1, head_dim) * 0.02)
        self.residual_pooling = residual_pooling

    def _add_pool(self, part: str, kernel: Any, stride: Any, channels: int, norm: Any) -> None:
        padding = tuple(size // 2 for size in kernel)
        pool: nn.Module | None = None
        if math.prod(kernel) * math.prod(stride) > 1:
            pool = (
                nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
                if self.mode == "conv"
                else nn.MaxPool3d(kernel, stride, padding)
            )
        setattr(self, f"pool_{part}", pool)
        if self.mode == "conv":
            setattr(self, f"norm_{part}", None if pool is None else norm(channels))

    def forward(self, x: Tensor, thw_shape: Any) -> tuple[Tensor, Any]:
        if self.pool_first:
            q = k = v = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        else:
            parts = (self.q(x), self.k(x), self.v(x)) if self.separate_qkv else self.qkv(x).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        (q, q_grid), (k, k_grid), (v, _) = (
            pooled(
                part,
                getattr(self, f"pool_{name}"),
                thw_shape,
                self.has_cls_embed,
                getattr(self, f"norm_{name}", None),
            )
            for name, part in zip("qkv", (q, k, v), strict=True)
        )
        if self.pool_first:
            q, k, v = (
                layer(part.transpose(1, 2).flatten(2)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for layer, part in zip((self.q, self.k, self.v), (q, k, v), strict=True)
            )
        start = int(self.has_cls_embed)
        scores = (q * self.scale) @ k.mT
        if self.rel_pos_spatial or self.rel_pos_temporal:
            bias = self._bias(q[:, :, start:].unflatten(2, q_grid), q_grid, k_grid)
            scores = scores + F.pad(bias, (start, 0, start, 0))
        x = scores.softmax(-1) @ v
        if self.residual_pooling:
            x = torch.cat((x[:, :, :start], x[:, :, start:] + q[:, :, start:]), 2)
        x = self.proj(x.transpose(1, 2).flatten(2))
        return (self.proj_drop(x) if self.drop_rate > 0 else x), q_grid

    def _bias(self, body: Tensor, q_grid: list[int], k_grid: list[int]) -> Tensor:
        """(B, h, T, H, W, C) -> (B, h, Nq, Nk)."""
        t, h, w = k_grid
        total = body.new_zeros(())
        if self.rel_pos_spatial:
            of_h = positions(body.transpose(3, 4), self.rel_pos_h, q_grid[1], h).transpose(3, 4)
            of_w = positions(body, self.rel_pos_w, q_grid[2], w)
            total = total + of_h[..., None, :, None] + of_w[..., None, None, :]
        if self.rel_pos_temporal:
            of_t = positions(body.transpose(2, 4), self.rel_pos_t, q_grid[0], t).transpose(2, 4)[
                ..., None, None
            ]
            total = total + of_t
        return total.expand(*total.shape[:5], t, h, w).flatten(5).flatten(2, 4)


class MultiScaleBlock(nn.Module):
    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        input_size: Sequence[int],
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 0.0,
        act_layer: Any = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        stride_q: Sequence[int] = (1, 1, 1),
        has_cls_embed: bool = True,
        dim_mul_in_att: bool = False,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.dim, self.dim_out = dim, dim_out
        self.norm1 = norm_layer(dim)
        self.dim_mul_in_att = dim_mul_in_att
        width = dim_out if dim_mul_in_att else dim
        self.attn = MultiScaleAttention(
            dim,
            width,
            input_size,
            num_heads,
            drop_rate=drop_rate,
            norm_layer=norm_layer,
            stride_q=stride_q,
            has_cls_embed=has_cls_embed,
            **attention,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(width)
        self.has_cls_embed = has_cls_embed
        self.mlp = Mlp(width, int(width * mlp_ratio), dim_out, act_layer, drop_rate)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale_init_value > 0:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale_init_value))
            self.gamma_2 = nn.Parameter(torch.full((dim_out,), layer_scale_init_value))
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        windows = [size + 1 if size > 1 else 1 for size in stride_q]
        pads = [size // 2 for size in windows]
        self.pool_skip = nn.MaxPool3d(windows, stride_q, pads) if math.prod(stride_q) > 1 else None

    def forward(self, x: Tensor, thw_shape: Any = None) -> Any:
        normed = self.norm1(x)
        attended, grid = self.attn(normed, thw_shape)
        if self.dim_mul_in_att and self.dim != self.dim_out:
            x = self.proj(normed)
        shortcut = pooled(x[:, None], self.pool_skip, thw_shape, self.has_cls_embed)[0][:, 0]
        x = shortcut + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        normed = self.norm2(x)
        hidden = self.mlp(normed)
        if not self.dim_mul_in_att and self.dim != self.dim_out:
            x = self.proj(normed)
        x = x + self.drop_path(hidden if self.gamma_2 is None else self.gamma_2 * hidden)
        return (x, grid) if thw_shape else x


def attention() -> Any:
    """`slowfast.models.attention`: of a checkout, or of this file under its name."""
    if ATTENTION not in sys.modules:
        try:
            importlib.import_module(ATTENTION)
        except ImportError:
            _stand_in()
    return sys.modules[ATTENTION]


def _stand_in() -> None:
    for place, kinds in (
        ("slowfast", ()),
        ("slowfast.models", ()),
        (COMMON, (Mlp, DropPath)),
        (ATTENTION, (MultiScaleAttention, MultiScaleBlock)),
    ):
        module = sys.modules[place] = ModuleType(place)
        for kind in kinds:
            kind.__module__ = place
            setattr(module, kind.__name__, kind)
