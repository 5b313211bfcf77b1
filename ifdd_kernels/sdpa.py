"""``pooled_attention`` on PyTorch's fused attention: the position bias as further columns of the heads.

With one-hot rows for a key's coordinates, q' = [s q | q.R_t | q.R_h | q.R_w] and k' = [k | t | y | x] have
the biased scores as their products: exact, and never a matrix of queries by keys but where PyTorch's own
``scaled_dot_product_attention`` makes one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels._operator import AUTOCAST_DEVICES
from ifdd_kernels.reference.pooled_attention import relative_index


class Layout(NamedTuple):
    """Tables that depend on the grids alone."""

    #: Row of an axis' table for every (query, key) pair, for t, h and w: (Q, K) int64 each.
    rows: tuple[Tensor, Tensor, Tensor]
    #: One-hot rows of a key's coordinates, (1 + THW, T + H + W + padding); zeros for the class token.
    hot: Tensor


def layout(
    q_grid: Sequence[int], k_grid: Sequence[int], head_dim: int, device: torch.device, dtype: torch.dtype
) -> Layout:
    """The index tables, made on the device: nothing is copied from the host, so a CUDA graph can hold it.

    Heads are padded to a multiple of 8, which fused attention kernels ask for.
    """
    first, second, third = (
        relative_index(queries, keys, device) for queries, keys in zip(q_grid, k_grid, strict=True)
    )
    token = torch.arange(math.prod(k_grid), device=device)
    _, height, width = k_grid
    coordinates = (token // (height * width), token // width % height, token % width)
    hot = [
        (axis[:, None] == torch.arange(size, device=device)).to(dtype)
        for axis, size in zip(coordinates, k_grid, strict=True)
    ]
    columns = sum(k_grid)
    padding = -(head_dim + columns) % 8
    return Layout((first, second, third), F.pad(torch.cat(hot, dim=1), (0, padding, 1, 0)))


def augmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    q_grid: Sequence[int],
    scale: float,
    fixed: Layout,
    residual: bool = True,
) -> Tensor:
    """softmax(scale q k^T + bias) v + residual query by one SDPA call.

    Args:
        q: (B, h, 1 + Nq, d), like k and v with their Nk; all of one dtype.
        k: (B, h, 1 + Nk, d).
        v: (B, h, 1 + Nk, d).
        tables: of time, height and width.
        q_grid: (T, H, W) of the queries.
        scale: of the products, not of the bias.
        fixed: what :func:`layout` returns for the grids, head size, device and dtype.
        residual: whether the query is added.

    Returns:
        (B, h, 1 + Nq, d).
    """
    batch, heads, count, head_dim = q.shape
    body = q[:, :, 1:].reshape(batch, heads, *q_grid, head_dim)
    biases = [
        torch.einsum(f"bhtyxd,{axis}kd->bhtyxk", body, table.to(q.dtype)[rows])
        for axis, table, rows in zip("tyx", tables, fixed.rows, strict=True)
    ]
    extra = fixed.hot.shape[1]
    columns = sum(rows.shape[1] for rows in fixed.rows)
    bias = torch.cat(biases, dim=-1).reshape(batch, heads, count - 1, columns)
    query = torch.cat((scale * q, F.pad(bias, (0, extra - columns, 1, 0))), dim=-1)
    key = torch.cat((k, fixed.hot.expand(batch, heads, -1, -1)), dim=-1)
    out = F.scaled_dot_product_attention(query, key, F.pad(v, (0, extra)), scale=1.0)[..., :head_dim]
    return _with_query(out, q) if residual else out


def _with_query(out: Tensor, q: Tensor) -> Tensor:
    """out + q, the class token's row left out; both (B, h, 1 + Nq, d)."""
    return out + F.pad(q[:, :, 1:], (0, 0, 1, 0))


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    scale: float,
    residual: bool = True,
) -> tuple[Tensor]:
    """The arguments of ``torch.ops.ifdd.pooled_attention``; its first output, (B, 1 + Nq, h*d).

    Without `residual` the query is not added.
    """
    with lowered(query, key, value) as (q, k, v):
        fixed = layout(q_grid, k_grid, q.shape[-1], q.device, q.dtype)
        out = augmented_attention(q, k, v, (table_t, table_h, table_w), q_grid, scale, fixed, residual)
        return (out.transpose(1, 2).flatten(2),)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, residual: bool) -> Tensor:
    """As :func:`pooled_attention` without tables: PyTorch's attention itself, (B, 1 + Nq, h*d)."""
    with lowered(query, key, value) as (q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out = _with_query(out, q) if residual else out
        return out.transpose(1, 2).flatten(2)


@contextmanager
def lowered(query: Tensor, key: Tensor, value: Tensor) -> Iterator[list[Tensor]]:
    """The three as (B, h, N, d) in autocast's dtype, and inside no autocast.

    The casts are the op's: autocast would lower the products of float64 too.
    """
    device = query.device.type
    parts = [query, key, value]
    castable = device in AUTOCAST_DEVICES  # of others, such as meta, PyTorch refuses to say
    if castable and torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        parts = [part.to(torch.get_autocast_dtype(device)) for part in parts]
    with torch.autocast(device, enabled=False) if castable else nullcontext():
        yield [part.transpose(1, 2) for part in parts]
