"""Depthwise 3x3x3 pooling with LayerNorm of q, k, v: the original, channels-last, 27 shifted products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.original.backbone import Grid, TokenPool
from benchmarks.rivals.contender import Bound, Contender, Inputs, adopt, parameters_of


class ChannelsLastPool(TokenPool):
    """:class:`TokenPool` whose volume stays in token order, (T, H, W, d): channels_last_3d memory.

    One copy takes the tokens of a head out of the packed qkv; nothing is permuted before or after.
    """

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        batch, heads, _, head_dim = x.shape
        tokens = x[:, :, 1:].reshape(batch * heads, -1, head_dim).contiguous()
        volume = tokens.unflatten(1, grid).permute(0, 4, 1, 2, 3)
        weight = self.pool.weight.contiguous(memory_format=torch.channels_last_3d)
        volume = F.conv3d(volume, weight, stride=self.pool.stride, padding=1, groups=head_dim)
        t, h, w = volume.shape[2:]
        pooled = volume.permute(0, 2, 3, 4, 1).reshape(batch, heads, t * h * w, head_dim)
        return self.norm_act(torch.cat((x[:, :, :1], pooled), dim=2)), (t, h, w)


class ShiftedPool(TokenPool):
    """The convolution as 27 products of shifted tokens, which a compiler fuses into one loop."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        padded = F.pad(x[:, :, 1:].unflatten(2, grid), (0, 0) + (1, 1) * 3)
        weight, stride = self.pool.weight[:, 0], self.pool.stride
        pooled = None
        for t in range(3):
            for h in range(3):
                for w in range(3):
                    window = padded
                    for axis, offset in enumerate((t, h, w)):
                        last = offset + grid[axis]
                        window = window[(slice(None),) * (2 + axis) + (slice(offset, last, stride[axis]),)]
                    product = window * weight[:, t, h, w]
                    pooled = product if pooled is None else pooled + product
        assert pooled is not None
        new_grid = (pooled.shape[2], pooled.shape[3], pooled.shape[4])
        return self.norm_act(torch.cat((x[:, :, :1], pooled.flatten(2, 4)), dim=2)), new_grid


class Pools(nn.Module):
    """Packed qkv (B, 1+THW, 3*h*d) to pooled q, k, v, as the original's attention does it."""

    def __init__(
        self, kind: type[TokenPool], parameters: dict[str, Tensor], constants: dict[str, Any]
    ) -> None:
        super().__init__()
        self.grid: Grid = tuple(constants["grid"])
        self.heads = constants["heads"]
        head_dim = parameters["weight_q"].shape[0]
        pools = []
        for part in "qkv":
            stride = tuple(constants["stride_q" if part == "q" else "stride_kv"])
            pool = kind(head_dim, stride)
            names = {
                "pool.weight": f"weight_{part}",
                "norm_act.0.weight": f"norm_weight_{part}",
                "norm_act.0.bias": f"norm_bias_{part}",
            }
            adopt(pool, {own: parameters[name] for own, name in names.items()})
            pools.append(pool)
        self.pools = nn.ModuleList(pools)

    def forward(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Query (B, 1+Nq, h, d), key and value (B, 1+Nk, h, d), as views of (B, h, N, d)."""
        batch, length, _ = qkv.shape
        parts = qkv.reshape(batch, length, 3, self.heads, -1).transpose(1, 3).unbind(dim=2)
        pooled = (pool(x, self.grid)[0] for pool, x in zip(self.pools, parts, strict=True))
        return tuple(x.transpose(1, 2) for x in pooled)


def _contender(name: str, kind: type[TokenPool]) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        parameters = parameters_of(inputs)
        return Bound(Pools(kind, parameters, inputs.constants), parameters)

    return Contender(name, bind)


def contenders() -> list[Contender]:
    """The rivals of ``pool_tokens``. The shifted products pay only where they are compiled."""
    original, rewrite = _contender("original", TokenPool), _contender("rewrite", ChannelsLastPool)
    shifts = _contender("shifts", ShiftedPool)
    return [original, rewrite, original.compile(), rewrite.compile(), shifts.compile()]
