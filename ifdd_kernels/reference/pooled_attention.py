"""Definition of ``pooled_attention``: the position bias is three small products, broadcast."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import accumulator

Triple = list[int]
AXES = "tyx"  # the query coordinates of an einsum, in the order of a grid; "k" is the key's


def relative_index(queries: int, keys: int, device: torch.device) -> Tensor:
    """Row of an axis' position table for every (query, key) pair: (Q, K) int64.

    trunc(q * max(K/Q, 1) - (k + 1 - K) * max(Q/K, 1)), in integers: one of the two rates is 1 and the
    other product is never negative, so truncation is floor division.
    """
    q = torch.arange(queries, device=device)[:, None]
    back = keys - 1 - torch.arange(keys, device=device)[None, :]
    if keys >= queries:
        return q * keys // queries + back
    return q + back * queries // keys


def _table_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """(Q, K, d) rows of one axis' table."""
    return table[relative_index(queries, keys, table.device)]


def _position_bias(
    body: Tensor, tables: tuple[Tensor, Tensor, Tensor], q_grid: Triple, k_grid: Triple
) -> Tensor:
    """Bias of all non-class pairs, (B, h, Nq, Nk), as the broadcast sum of three (B, h, Nq, K) products.

    ``body`` is the unscaled query as (B, h, t, y, x, d); ``tables`` are in the order t, h, w.
    """
    batch, heads = body.shape[:2]
    total = body.new_zeros(())
    for axis, letter in enumerate(AXES):
        rows = _table_rows(tables[axis], q_grid[axis], k_grid[axis])
        shape = [batch, heads, *q_grid, 1, 1, 1]
        shape[5 + axis] = k_grid[axis]
        total = total + torch.einsum(f"bhtyxd,{letter}kd->bhtyxk", body, rows).reshape(shape)
    return total.reshape(batch, heads, math.prod(q_grid), math.prod(k_grid))


def _scores(
    q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor, Tensor], q_grid: Triple, k_grid: Triple, scale: float
) -> Tensor:
    """Scaled products plus the position bias; the class row and column (index 0) get none."""
    batch, heads, _, channels = q.shape
    body = q[:, :, 1:].reshape(batch, heads, *q_grid, channels)
    bias = _position_bias(body, tables, q_grid, k_grid)
    return (q @ k.mT) * scale + F.pad(bias, (1, 0, 1, 0))


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: Triple,
    k_grid: Triple,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Heads joined (B, 1 + Nq, h*d), and the rows' log-sum-exp (B, h, 1 + Nq)."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    return attention_of_parts(q, k, v, (table_t, table_h, table_w), q_grid, k_grid, scale)


def attention_of_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor, Tensor],
    q_grid: Triple,
    k_grid: Triple,
    scale: float,
    residual: bool = True,
) -> tuple[Tensor, Tensor]:
    """As :func:`pooled_attention`, of heads (B, h, 1 + N, d) and tables in the order t, h, w.

    The query is added only with `residual`.
    """
    out_dtype, dtype = q.dtype, accumulator(q.dtype)
    q, k, v = (part.to(dtype) for part in (q, k, v))
    rows = (tables[0].to(dtype), tables[1].to(dtype), tables[2].to(dtype))
    scores = _scores(q, k, rows, q_grid, k_grid, scale)
    log_sum = scores.logsumexp(-1)
    out = scores.softmax(-1) @ v
    if residual:
        out = out + F.pad(q[:, :, 1:], (0, 0, 1, 0))
    return out.transpose(1, 2).flatten(2).to(out_dtype), log_sum


def pooled_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    out: Tensor,
    log_sum: Tensor,
    q_grid: Triple,
    k_grid: Triple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and the three tables; the probabilities are recomputed.

    ``log_sum`` is there for kernels that do not see whole rows at once, ``out`` for those that form
    rowsum(dP * P) as rowsum(grad_out * (out - residual)) without a matrix. The softmax and the sum,
    used here, carry neither the rounding of a large ``log_sum`` nor that of a 16-bit ``out``.
    """
    dtype = accumulator(query.dtype)
    batch, length, heads, channels = query.shape
    q, k, v = (part.to(dtype).transpose(1, 2) for part in (query, key, value))
    g = grad_out.to(dtype).reshape(query.shape).transpose(1, 2)
    tables = (table_t.to(dtype), table_h.to(dtype), table_w.to(dtype))

    probability = _scores(q, k, tables, q_grid, k_grid, scale).softmax(-1)
    grad_probability = g @ v.mT
    delta = (grad_probability * probability).sum(-1, keepdim=True)
    grad_scores = probability * (grad_probability - delta)

    body = q[:, :, 1:].reshape(batch, heads, *q_grid, channels)
    pairs = grad_scores[:, :, 1:, 1:].reshape(batch, heads, *q_grid, *k_grid)
    grad_body = torch.zeros_like(body)
    grad_tables = []
    for axis, letter in enumerate(AXES):
        others = [5 + other for other in range(3) if other != axis]
        grad_bias = pairs.sum(others)  # (B, h, t, y, x, k)
        rows = _table_rows(tables[axis], q_grid[axis], k_grid[axis])
        grad_body = grad_body + torch.einsum(f"bhtyxk,{letter}kd->bhtyxd", grad_bias, rows)
        grad_rows = torch.einsum(f"bhtyxk,bhtyxd->{letter}kd", grad_bias, body)
        # A product with the one-hot of the row numbers, not index_add: no atomics, so deterministic on GPUs.
        index = relative_index(q_grid[axis], k_grid[axis], q.device)
        onehot = F.one_hot(index, tables[axis].shape[0]).to(dtype)
        grad_tables.append(torch.einsum("qkr,qkd->rd", onehot, grad_rows))  # (rows, d)

    grad_q = (grad_scores @ k) * scale
    extra = grad_body.reshape(batch, heads, length - 1, channels) + g[:, :, 1:]
    grad_q = grad_q + F.pad(extra, (0, 0, 1, 0))
    grads = (grad_q, (grad_scores.mT @ q) * scale, probability.mT @ g)
    grad_query, grad_key, grad_value = (part.transpose(1, 2).to(query.dtype) for part in grads)
    grad_t, grad_h, grad_w = grad_tables
    return (
        grad_query,
        grad_key,
        grad_value,
        grad_h.to(table_h.dtype),
        grad_w.to(table_w.dtype),
        grad_t.to(table_t.dtype),
    )
