"""Attention with decomposed relative position: the original, and SDPA on augmented heads."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contender import Bound, Contender, Inputs, Outputs, parameters_of
from benchmarks.original.backbone import Grid, PooledAttention, add_relative_position

Tables = tuple[Tensor, Tensor, Tensor]
"""Of time, height and width."""


@functools.cache
def _relative_rows(queries: int, keys: int, device: torch.device) -> Tensor:
    """Row of an axis' table for every (query, key) pair."""
    query = torch.arange(queries)[:, None] * max(keys / queries, 1.0)
    key = (torch.arange(keys)[None, :] + 1 - keys) * max(queries / keys, 1.0)
    return (query - key).long().to(device)


@functools.cache
def _coordinates(grid: Grid, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One-hot rows of a key's coordinates, (1 + THW, width): its t, y and x; zeros for the class token."""
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    hot = [F.one_hot(axis.flatten(), size) for axis, size in zip(axes, grid, strict=True)]
    columns = torch.cat(hot, dim=1)
    return F.pad(columns, (0, width - columns.shape[1], 1, 0)).to(device=device, dtype=dtype)


def augmented_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, q_grid: Grid, k_grid: Grid, scale: float
) -> Tensor:
    """softmax(scale q k^T + bias) v + residual query, exactly, by one SDPA call.

    q' = [scale q | q.R_t | q.R_h | q.R_w] and k' = [k | one-hot t, y, x] have the biased scores as products.
    The head size is padded to a multiple of 8, which fused attention kernels ask for. q, k, v are
    (B, heads, N, d).
    """
    batch, heads, count, head_dim = q.shape
    body = q[:, :, 1:].reshape(batch, heads, *q_grid, head_dim)
    biases = [
        torch.einsum(f"bhtyxd,{axis}kd->bhtyxk", body, table[_relative_rows(queries, keys, q.device)])
        for axis, table, queries, keys in zip("tyx", tables, q_grid, k_grid, strict=True)
    ]
    extra = -(-(head_dim + sum(k_grid)) // 8) * 8 - head_dim
    bias = torch.cat(biases, dim=-1).reshape(batch, heads, count - 1, -1)
    bias = F.pad(bias, (0, extra - bias.shape[-1], 1, 0))
    query = torch.cat((scale * q, bias.to(q.dtype)), dim=-1)
    hot = _coordinates(tuple(k_grid), extra, q.device, k.dtype)
    key = torch.cat((k, hot.expand(batch, heads, -1, -1)), dim=-1)
    out = F.scaled_dot_product_attention(query, key, F.pad(v, (0, extra)), scale=1.0)[..., :head_dim]
    return out + F.pad(q[:, :, 1:], (0, 0, 1, 0))


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
