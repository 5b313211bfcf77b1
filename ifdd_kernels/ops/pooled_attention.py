"""``pooled_attention``: MViTv2's attention with decomposed relative position and residual query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels import _check, _preferred, recording, reference, sdpa
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run, select
from ifdd_kernels.grids import table_length
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
) -> None:
    op = "pooled_attention"
    _check.triple(op, "q_grid", q_grid)
    _check.triple(op, "k_grid", k_grid)
    _check.shape(op, "query", query, ("B", "1+Nq", "h", "d"))
    _check.floating(op, "query", query)
    _check.channels(op, "query", query)
    batch, _, heads, channels = query.shape
    _check.shape(op, "query", query, ("B", 1 + math.prod(q_grid), "h", "d"))
    for name, part in (("key", key), ("value", value)):
        _check.shape(op, name, part, (batch, 1 + math.prod(k_grid), heads, channels))
        _check.same(op, name, part, "query", query)
    for axis, name, table in ((1, "table_h", table_h), (2, "table_w", table_w), (0, "table_t", table_t)):
        rows = table_length(q_grid[axis], k_grid[axis])
        _check.parameter(op, name, table, (rows, channels), "query", query)


def _fake(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, heads, channels = query.shape
    return (
        query.new_empty(batch, rows, heads * channels),
        query.new_empty(batch, heads, rows, dtype=accumulator(query.dtype)),
    )


def _fake_backward(
    query: Tensor, key: Tensor, value: Tensor, table_h: Tensor, table_w: Tensor, table_t: Tensor
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value, table_h, table_w, table_t))


def _sizes(query: Tensor, key: Tensor) -> tuple[int, ...]:
    return (*query.shape, key.shape[1])


OPERATOR = register(
    "pooled_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor table_h, Tensor table_w, Tensor table_t,"
    " int[3] q_grid, int[3] k_grid, float scale) -> (Tensor out, Tensor log_sum)",
    reference=reference.pooled_attention,
    fake=_fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor table_h, Tensor table_w,"
        " Tensor table_t, Tensor out, Tensor log_sum, int[3] q_grid, int[3] k_grid, float scale)"
        " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_table_h,"
        " Tensor grad_table_w, Tensor grad_table_t)",
        reference=reference.pooled_attention_backward,
        fake=_fake_backward,
    ),
    non_differentiable=("log_sum",),
    autocast=("query", "key", "value"),
    parameters=("table_h", "table_w", "table_t"),
    backends={"triton": twin("pooled_attention")},
    sizes=_sizes,
    compositions={"sdpa": sdpa.pooled_attention},
)


def _has_grid(tokens: Tensor, grid: Sequence[int]) -> bool:
    """Whether tokens (B, 1 + T*H*W, h, d) are those of a grid."""
    return isinstance(tokens, Tensor) and tokens.dim() == 4 and tokens.shape[1] == 1 + math.prod(grid)


def _fit(table: Tensor, rows: int) -> Tensor:
    """A table of another length, interpolated linearly along its rows (corners not aligned).

    What cannot be a table goes to the op's check.
    """
    if not isinstance(table, Tensor) or table.dim() != 2 or table.shape[0] in (0, rows):
        return table
    if table.layout != torch.strided or not table.is_floating_point() or table.shape[1] < 1:
        return table
    columns = table.T[None].to(accumulator(table.dtype))
    return F.interpolate(columns, size=rows, mode="linear", align_corners=False)[0].T.to(table.dtype)


def pooled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    table_t: Tensor | None,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    *,
    scale: float | None = None,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    r"""Attention between pooled queries and pooled keys with a position bias per axis.

    .. math::
        o_i = \sum_j \mathrm{softmax}_j\bigl(s\,q_i \cdot k_j + b_{ij}\bigr)\,v_j + [i > 0]\,q_i, \qquad
        b_{ij} = q_i \cdot (R^h_{\iota(y_i, y_j)} + R^w_{\iota(x_i, x_j)} + R^t_{\iota(t_i, t_j)})

    with q unscaled in b and in the residual, no bias for the class token (row and column 0), and, for
    grid sizes Q and K of an axis,

    .. math:: \iota(q, k) = \lfloor q \max(K/Q, 1) + (K - 1 - k) \max(Q/K, 1) \rfloor .

    Args:
        query: (B, 1 + Nq, h, d); float16, bfloat16, float32 or float64, any strides. Under autocast
            query, key and value are cast to its dtype.
        key: (B, 1 + Nk, h, d).
        value: (B, 1 + Nk, h, d).
        table_h: R^h, (2 max(Q, K) - 1, d) for the height; another length is interpolated linearly. In the
            dtype of query or float32 (float64 with float64), like the other tables. None: no bias along
            this axis, R = 0.
        table_w: R^w, the width's.
        table_t: R^t, the time's.
        q_grid: (T, H, W) of the queries.
        k_grid: (T, H, W) of the keys.
        scale: s; d^-1/2 if not given.
        residual: whether the query is added, the last term of the formula.
        backend: see :mod:`ifdd_kernels.backends`. ``"sdpa"`` is one more of this op: the same function by
            PyTorch's ``scaled_dot_product_attention``, in query's dtype, bias included. It is what ``"auto"``
            means without any table or without `residual`, on every device; there ``"reference"`` is the
            other one that exists.

    Returns:
        (B, 1 + Nq, h*d) in query's dtype; scores and sums in float32 (float64).

    Gradients flow to all six tensors; the probabilities are recomputed in backward. Deterministic
    (``"sdpa"``: as PyTorch's attention is).

    Raises:
        ValueError: a shape, grid or device that does not fit.
        TypeError: a dtype that does not.
        RuntimeError: a backend that cannot run the call.

    Source: Li et al., "MViTv2", CVPR 2022, arXiv:2112.01526 (decomposed relative position, residual
    pooling).
    """
    q_grid = _check.triple("pooled_attention", "q_grid", q_grid)
    k_grid = _check.triple("pooled_attention", "k_grid", k_grid)
    if scale is None:
        scale = _check.default_scale("pooled_attention", query)
    if type(residual) is not bool:
        _check.number("pooled_attention", "residual", "bool", residual)  # type: ignore[unreachable]
    tables = [table_t, table_h, table_w]
    without_tables = all(table is None for table in tables)
    # Other grids than those of query and key go to the op's check: tables of their length may be huge.
    if _has_grid(query, q_grid) and _has_grid(key, k_grid):
        tables = [
            _zeros(query, table_length(q, k)) if table is None else _fit(table, table_length(q, k))
            for table, q, k in zip(tables, q_grid, k_grid, strict=True)
        ]
    elif isinstance(query, Tensor):
        tables = [query.new_zeros(1, 1) if table is None else table for table in tables]
    arguments: tuple[Any, ...] = (
        query,
        key,
        value,
        tables[1],
        tables[2],
        tables[0],
        q_grid,
        k_grid,
        scale,
    )
    if without_tables or not residual:
        return _variant(arguments, without_tables, residual, backend)
    out: Tensor = run(OPERATOR, backend, *arguments)[0]
    return out


def _zeros(query: Tensor, rows: int) -> Tensor:
    """The table of an axis without bias."""
    return query.new_zeros(rows, query.shape[-1])


def _variant(arguments: tuple[Any, ...], without_tables: bool, residual: bool, backend: str) -> Tensor:
    """Attention without tables or without the query: PyTorch's fused attention, or the definition."""
    query, key, value, table_h, table_w, table_t, q_grid, k_grid, scale = arguments
    if not torch.compiler.is_compiling():
        OPERATOR.check(*arguments)
    if backend == "auto" and _preferred.chosen == "reference":
        backend = "reference"
    if recording.active and backend in ("auto", "reference", "sdpa") and not torch.compiler.is_compiling():
        ran = "reference" if backend == "reference" else "sdpa"
        recording.note(OPERATOR.name, ran, arguments[:3] if without_tables else arguments)
    if backend == "reference":
        with sdpa.lowered(query, key, value) as parts:
            q, k, v = parts
            in_order = (table_t, table_h, table_w)
            return reference.attention_of_parts(q, k, v, in_order, q_grid, k_grid, scale, residual)[0]
    if backend not in ("auto", "sdpa"):
        select(OPERATOR.name, backend, *arguments)  # refuses names and devices in its own words
        what = "without tables" if without_tables else "without the residual query"
        raise RuntimeError(
            f"{OPERATOR.name}: backend {backend!r} cannot run: {what} it is PyTorch's"
            " scaled_dot_product_attention ('sdpa') or the reference"
        )
    if without_tables:
        return sdpa.plain_attention(query, key, value, scale, residual)
    tables = (table_h, table_w, table_t)
    return sdpa.pooled_attention(query, key, value, *tables, q_grid, k_grid, scale, residual)[0]
