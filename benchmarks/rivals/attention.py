"""Attention with decomposed relative position: the original, and SDPA on augmented heads."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.original.backbone import Grid, PooledAttention, add_relative_position
from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs, parameters_of
from ifdd_kernels import sdpa
from ifdd_kernels.sdpa import layout

Tables = tuple[Tensor, Tensor, Tensor]
"""Of time, height and width."""


# Kept from call to call: the rival of a kernel does not make its constants anew.
_layout = functools.cache(layout)


def augmented_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, q_grid: Grid, k_grid: Grid, scale: float
) -> Tensor:
    """The library's own rewrite with kept index tables: q, k, v are (B, heads, N, d)."""
    fixed = _layout(tuple(q_grid), tuple(k_grid), q.shape[-1], q.device, k.dtype)
    return sdpa.augmented_attention(q, k, v, tables, q_grid, scale, fixed)


def original_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, q_grid: Grid, k_grid: Grid, scale: float
) -> Tensor:
    """The lines of the original between the pools and the joining of the heads."""
    scores = torch.matmul(q * scale, k.transpose(2, 3))
    scores = add_relative_position(scores, q, q_grid, k_grid, tables)
    out = torch.matmul(scores.softmax(dim=-1), v)
    out[:, :, 1:] += q[:, :, 1:]
    return out


class LibraryAttention(PooledAttention):
    """The original module with :func:`augmented_attention` inside."""

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).transpose(1, 3).unbind(dim=2)
        k, k_grid = self.pool_k(k, grid)
        v, _ = self.pool_v(v, grid)
        q, q_grid = self.pool_q(q, grid)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        out = augmented_attention(q, k, v, tables, q_grid, k_grid, self.scale)
        return self.project(out.transpose(1, 2).flatten(2)), q_grid


def _head_major(x: Tensor) -> Tensor:
    """(B, N, h, d) with the memory of (B, h, N, d), in which the original's pools leave it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _contender(name: str, function: object, capturable: bool) -> Contender:
    def bind(inputs: Inputs) -> Bound:
        parameters, constants = parameters_of(inputs), inputs.constants
        tables = tuple(parameters[f"table_{axis}"] for axis in "thw")
        grids = tuple(constants["q_grid"]), tuple(constants["k_grid"])
        scale = constants["scale"]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Outputs:
            heads = (x.transpose(1, 2) for x in (query, key, value))
            out = function(*heads, tables, *grids, scale)  # type: ignore[operator]
            return (out.transpose(1, 2).flatten(2),)

        return Bound(attend, parameters)

    return Contender(name, bind, layout=_head_major, capturable=capturable)


def contenders() -> list[Contender]:
    """The rivals of ``pooled_attention``."""
    original = _contender("original", original_attention, capturable=False)
    rewrite = _contender("rewrite", augmented_attention, capturable=True)
    return [original, rewrite, original.compile(), rewrite.compile()]
