"""Triton kernels of ``pooled_attention``: q.R and its gradients around the shared attention.

The bias of a query at (t, y, x) and a key at (t', y', x') is q.(R_t[i(t, t')] + R_h[i(y, y')] +
R_w[i(x, x')]), i the row of an axis' table. ``position_products`` writes q.R for every t', y' and x', T + H
+ W numbers a query where a matrix would have T*H*W, and the attention picks them with one-hot columns.

A program owns one (y, x) of the query grid, all its clips, heads and t: it needs 7 + 7 rows of R_h and R_w
(keys of 7 x 7), the same for all its queries, so both directions are products of dense tiles. Along t every
query has rows of its own: those products run over the whole (short) table, and what a query has no key for is
not stored, or read as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton import _attention
from ifdd_kernels.triton._attention import (
    LOG2E,
    Position,
    accumulate,
    cast,
    column_tiles,
    inner,
    load_tiles,
    plus,
    position_stride,
    store_tiles,
    sum_of,
    whole_tile,
    zeros,
)
from ifdd_kernels.triton._functions import to_tf32
from ifdd_kernels.triton._runtime import (
    OLDER_COMPILER,
    Kernel,
    cdiv,
    contiguous_channels,
    dot_precision,
    next_power_of_2,
)
from ifdd_kernels.triton._tuning import Config, Grid


@triton.jit
def _table_row(q, k, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Row of an axis' table for a query and a key: q max(K/Q, 1) + (K-1-k) max(Q/K, 1), rounded down."""
    back = KEYS - 1 - k
    if KEYS >= QUERIES:
        row = q * KEYS // QUERIES + back
    else:
        row = q + back * QUERIES // KEYS
    return row


@triton.jit
def _key_of_row(q, row, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """The key whose row of the table this is for a query, and whether there is one (there is at most one)."""
    if KEYS >= QUERIES:
        back = row - q * KEYS // QUERIES
        exists = (back >= 0) & (back < KEYS)
    else:
        apart = tl.maximum(row - q, 0)
        back = (apart * KEYS + QUERIES - 1) // QUERIES
        exists = (row >= q) & (back < KEYS) & (back * QUERIES // KEYS == apart)
    return KEYS - 1 - back, exists


@triton.jit
def _factors(tiles, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """float32 factors of products that were read as ``dtype``, rounded where tensor cores would cut them."""
    factors = ()
    for i in tl.static_range(len(tiles)):
        factor = tiles[i].to(tl.float32)
        if PRECISION == "tf32" and dtype == tl.float32:
            factor = to_tf32(factor)
        factors = factors + (factor,)
    return factors


@triton.jit
def _position_rows(
    table_h, table_w, y, x, start, WIDTH: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    Q_H: tl.constexpr, Q_W: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(COLUMNS, d) factors: rows R_h[i(y, y')] and R_w[i(x, x')], columns y' and K_H + x' from ``start``."""
    column = start + tl.arange(0, COLUMNS)
    is_h = column < K_H
    is_w = (column >= K_H) & (column < K_H + K_W)
    # What is not asked for must not point outside its table either.
    row_h = tl.where(is_h, _table_row(y, tl.where(is_h, column, 0), Q_H, K_H), 0)
    row_w = tl.where(is_w, _table_row(x, tl.where(is_w, column - K_H, 0), Q_W, K_W), 0)
    rows_h = load_tiles(table_h + row_h * WIDTH, is_h, WIDTH, PARTS, True)
    rows_w = load_tiles(table_w + row_w * WIDTH, is_w, WIDTH, PARTS, True)
    return _factors(plus(cast(rows_h, tl.float32), rows_w), table_h.dtype.element_ty, PRECISION)


@triton.jit
def _time_rows(
    table_t, start, WIDTH: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr
):
    """(16, d) factors: rows of R_t from ``start``, of ROWS."""
    row = start + tl.arange(0, 16)
    rows = load_tiles(table_t + row * WIDTH, row < ROWS, WIDTH, PARTS, True)
    return _factors(rows, table_t.dtype.element_ty, PRECISION)


@triton.jit
def _queries_of(tile, y, x, clips, heads, ROWS: tl.constexpr, Q_T: tl.constexpr, Q_H: tl.constexpr,
                Q_W: tl.constexpr):  # fmt: skip
    """The rows of a program are (clip, head, t), t fastest: whether they exist, t, clip, head, cell."""
    row = tile * ROWS + tl.arange(0, ROWS)
    t = row % Q_T
    batch_head = (row // Q_T).to(tl.int64)
    cell = (t * Q_H + y) * Q_W + x
    return batch_head < clips * heads, t, batch_head // heads, batch_head % heads, cell.to(tl.int64)


@triton.jit
def _fitted(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """x in a dtype; what float16 cannot hold is its largest number, not infinity (a score of 45000).

    It is a factor of a product next.
    """
    if dtype == tl.float16:
        x = tl.where(tl.abs(x) > 65504.0, tl.where(x > 0, 65504.0, -65504.0), x)
    elif PRECISION == "tf32":
        x = to_tf32(x)
    return x.to(dtype)


@triton.jit
def position_products(
    query, table_h, table_w, table_t, position, onehot, key, mean_key,
    q_batch, q_token, q_head, k_batch, k_token, k_head, clips, heads,
    Q_T: tl.constexpr, Q_H: tl.constexpr, Q_W: tl.constexpr,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """log2(e) q.R for every key coordinate, columns t | y | x; position (B, h, Nq, stride).

    The programs share further duties: ``onehot`` (1 + Nk, tiles of E), 1 at a key's coordinates, and, MEANS,
    ``mean_key`` (B, h, d), the mean over the keys, which the gradient of the queries asks for.
    """
    PARTS: tl.constexpr = column_tiles(WIDTH)
    tiles = tl.cdiv(clips * heads * Q_T, ROWS)
    y = tl.program_id(0) // tiles // Q_W
    x = tl.program_id(0) // tiles % Q_W
    inside, t, clip, head, cell = _queries_of(
        tl.program_id(0) % tiles, y, x, clips, heads, ROWS, Q_T, Q_H, Q_W
    )
    rows = query + clip * q_batch + head * q_head + (1 + cell) * q_token
    q = _factors(load_tiles(rows, inside, WIDTH, PARTS, True), query.dtype.element_ty, PRECISION)
    out = position + ((clip * heads + head) * (Q_T * Q_H * Q_W) + cell) * position_stride(K_T + K_H + K_W)

    for start in range(0, K_H + K_W, 32):
        r = _position_rows(table_h, table_w, y, x, start, WIDTH, PARTS, 32, Q_H, Q_W, K_H, K_W, PRECISION)
        column = start + tl.arange(0, 32)
        products = inner(q, r, PRECISION) * LOG2E
        kept = inside[:, None] & (column < K_H + K_W)[None, :]
        pointers = out[:, None] + (K_T + column)[None, :]
        tl.store(pointers, _fitted(products, position.dtype.element_ty, PRECISION), mask=kept)

    TABLE_T: tl.constexpr = 2 * max(Q_T, K_T) - 1
    for start in range(0, TABLE_T, 16):
        row = start + tl.arange(0, 16)
        r = _time_rows(table_t, start, WIDTH, PARTS, TABLE_T, PRECISION)
        at, exists = _key_of_row(t[:, None], row[None, :], Q_T, K_T)
        products = inner(q, r, PRECISION) * LOG2E
        kept = inside[:, None] & exists
        tl.store(out[:, None] + at, _fitted(products, position.dtype.element_ty, PRECISION), mask=kept)

    COLUMNS: tl.constexpr = sum_of(column_tiles(K_T + K_H + K_W))
    column = tl.arange(0, whole_tile(COLUMNS))
    for of in range(tl.program_id(0), 1 + K_T * K_H * K_W, tl.num_programs(0)):
        of_key = tl.maximum(of - 1, 0)
        y_column = K_T + of_key // K_W % K_H
        x_column = K_T + K_H + of_key % K_W
        hit = (column == of_key // (K_H * K_W)) | (column == y_column) | (column == x_column)
        value = (hit & (column >= 0) & (of > 0)).to(onehot.dtype.element_ty)
        tl.store(onehot + of * COLUMNS + column, value, mask=column < COLUMNS)

    if MEANS:
        KEYS: tl.constexpr = 1 + K_T * K_H * K_W
        column = tl.arange(0, whole_tile(WIDTH))
        for of in range(tl.program_id(0), clips * heads, tl.num_programs(0)):
            head_keys = key + (of // heads).to(tl.int64) * k_batch + (of % heads) * k_head
            total = tl.zeros((32, whole_tile(WIDTH)), tl.float32)
            for start in range(0, KEYS, 32):
                row = start + tl.arange(0, 32)
                kept = (row < KEYS)[:, None] & (column < WIDTH)[None, :]
                place = row.to(tl.int64) * k_token
                values = tl.load(head_keys + place[:, None] + column[None, :], mask=kept, other=0.0)
                total += values.to(tl.float32)
            tl.store(mean_key + of * WIDTH + column, tl.sum(total, 0) / KEYS, mask=column < WIDTH)


@triton.jit
def position_gradient(
    grad_position, partial_grad, query, table_h, table_w, table_t, grad_query, parts,
    q_batch, q_token, q_head, clips, heads,
    Q_T: tl.constexpr, Q_H: tl.constexpr, Q_W: tl.constexpr,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_query = partial_grad + gradient through q.R, and sums of grad_position^T q over a program's rows.

    ``parts`` is (programs, K_H + K_W + rows of table_t, d) float32: see ``table_gradient``. The class
    queries, which have no position, are left to that kernel.
    """
    PARTS: tl.constexpr = column_tiles(WIDTH)
    TABLE_T: tl.constexpr = 2 * max(Q_T, K_T) - 1
    program = tl.program_id(0)
    tiles = tl.cdiv(clips * heads * Q_T, ROWS)
    y = program // tiles // Q_W
    x = program // tiles % Q_W
    inside, t, clip, head, cell = _queries_of(program % tiles, y, x, clips, heads, ROWS, Q_T, Q_H, Q_W)
    rows = query + clip * q_batch + head * q_head + (1 + cell) * q_token
    q = _factors(load_tiles(rows, inside, WIDTH, PARTS, True), query.dtype.element_ty, PRECISION)
    joined = ((clip * (1 + Q_T * Q_H * Q_W) + 1 + cell) * heads + head) * WIDTH
    sums = cast(load_tiles(partial_grad + joined, inside, WIDTH, PARTS, True), tl.float32)
    grads = grad_position + ((clip * heads + head) * (Q_T * Q_H * Q_W) + cell) * position_stride(
        K_T + K_H + K_W
    )
    mine = parts + program.to(tl.int64) * ((K_H + K_W + TABLE_T) * WIDTH)

    for start in range(0, K_H + K_W, 32):
        r = _position_rows(table_h, table_w, y, x, start, WIDTH, PARTS, 32, Q_H, Q_W, K_H, K_W, PRECISION)
        column = start + tl.arange(0, 32)
        kept = inside[:, None] & (column < K_H + K_W)[None, :]
        loaded = tl.load(grads[:, None] + (K_T + column)[None, :], mask=kept, other=0.0)
        g = _factors((loaded,), loaded.dtype, PRECISION)[0]
        sums = accumulate(sums, g, r, PRECISION)
        table = accumulate(zeros(32, PARTS), tl.trans(g), q, PRECISION)
        store_tiles(mine + column * WIDTH, column < K_H + K_W, table, WIDTH, PARTS)

    for start in range(0, TABLE_T, 16):
        row = start + tl.arange(0, 16)
        r = _time_rows(table_t, start, WIDTH, PARTS, TABLE_T, PRECISION)
        key, exists = _key_of_row(t[:, None], row[None, :], Q_T, K_T)
        kept = inside[:, None] & exists
        loaded = tl.load(grads[:, None] + key, mask=kept, other=0.0)
        g = _factors((loaded,), loaded.dtype, PRECISION)[0]
        sums = accumulate(sums, g, r, PRECISION)
        table = accumulate(zeros(16, PARTS), tl.trans(g), q, PRECISION)
        store_tiles(mine + (K_H + K_W + row) * WIDTH, row < TABLE_T, table, WIDTH, PARTS)

    store_tiles(grad_query + joined, inside, sums, WIDTH, PARTS)


@triton.jit
def _row_sum(
    parts, row, column, lines, line_length, line_step, coordinate_step, FIRST: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROWWISE: tl.constexpr, SLOTS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds the slots of ``parts`` that belong to a row of a table, in a fixed order.

    The programs of coordinate c are ``lines`` runs of ``line_length`` neighbours, ``line_step`` apart from
    c * ``coordinate_step``. In an axis with a slot a key, a row takes the slot of its key from every c;
    ROWWISE, it takes its own from all programs.
    """
    total = tl.zeros((COLUMNS,), tl.float32)
    for c in range(1 if ROWWISE else QUERIES):
        if ROWWISE:
            slot = row
            exists = row >= 0
        else:
            slot, exists = _key_of_row(c, row, QUERIES, KEYS)
        if exists:
            for start in range(0, lines * line_length, BLOCK):
                i = start + tl.arange(0, BLOCK)
                program = c * coordinate_step + i // line_length * line_step + i % line_length
                rows = parts + (program.to(tl.int64) * SLOTS + FIRST + slot) * WIDTH
                kept = (i < lines * line_length)[:, None] & (column < WIDTH)[None, :]
                total += tl.sum(tl.load(rows[:, None] + column[None, :], mask=kept, other=0.0), 0)
    return total


@triton.jit
def table_gradient(
    parts, grad_h, grad_w, grad_t, partial_grad, grad_query, tiles, clips, heads,
    Q_T: tl.constexpr, Q_H: tl.constexpr, Q_W: tl.constexpr,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A row of one of the tables' gradients, from the sums of ``position_gradient``'s programs.

    Those are, for each y and x of the query grid, ``tiles`` neighbours. The programs share a second duty:
    gradients of class queries, which have no part through q.R, go from ``partial_grad`` to ``grad_query``.
    """
    ROWS_H: tl.constexpr = 2 * max(Q_H, K_H) - 1
    ROWS_W: tl.constexpr = 2 * max(Q_W, K_W) - 1
    SLOTS: tl.constexpr = K_H + K_W + 2 * max(Q_T, K_T) - 1
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    line = Q_W * tiles
    if row < ROWS_H:
        total = _row_sum(
            parts, row, column, 1, line, 0, line, 0, Q_H, K_H, False, SLOTS, WIDTH, BLOCK, COLUMNS
        )  # fmt: skip
        _store_row(grad_h, row, column, total, WIDTH)
    elif row < ROWS_H + ROWS_W:
        row -= ROWS_H
        total = _row_sum(
            parts, row, column, Q_H, tiles, line, tiles, K_H, Q_W, K_W, False, SLOTS, WIDTH, BLOCK, COLUMNS
        )  # fmt: skip
        _store_row(grad_w, row, column, total, WIDTH)
    else:
        row -= ROWS_H + ROWS_W
        total = _row_sum(
            parts, row, column, 1, Q_H * line, 0, 0, K_H + K_W, Q_T, K_T, True, SLOTS, WIDTH, BLOCK, COLUMNS
        )  # fmt: skip
        _store_row(grad_t, row, column, total, WIDTH)
    for of in range(tl.program_id(0), clips * heads, tl.num_programs(0)):
        first = (of // heads).to(tl.int64) * (1 + Q_T * Q_H * Q_W) * heads + of % heads
        place = first * WIDTH + column
        taken = tl.load(partial_grad + place, mask=column < WIDTH, other=0.0)
        tl.store(grad_query + place, taken, mask=column < WIDTH)


@triton.jit
def _store_row(table, row, column, values, WIDTH: tl.constexpr):
    tl.store(table + row * WIDTH + column, values.to(table.dtype.element_ty), mask=column < WIDTH)


def _one_config(**tiles: int) -> Any:
    return lambda arguments: [Config(tiles)]


def _wide_config(rows: int) -> Any:
    """More warps where four spill before Triton 3.8 (2 stores and 1): for programs of that many queries."""
    return lambda arguments: [Config({}, 8 if OLDER_COMPILER and arguments["ROWS"] == rows else 4)]


#: ROWS is an argument, not a configuration: the number of partial sums follows from it.
PRODUCTS = Kernel(position_products, _wide_config(16))
GRADIENT = Kernel(position_gradient, _wide_config(32))
TABLE = Kernel(
    table_gradient, _one_config(BLOCK=32, COLUMNS=32), (), lambda _: {"BLOCK": 256, "COLUMNS": 128}
)


def _grids(q_grid: Sequence[int], k_grid: Sequence[int]) -> dict[str, int]:
    names = ("Q_T", "Q_H", "Q_W", "K_T", "K_H", "K_W")
    return dict(zip(names, (*q_grid, *k_grid), strict=True))


def _position_arguments(
    query: Tensor, tables: Sequence[Tensor], q_grid: Sequence[int], k_grid: Sequence[int]
) -> dict[str, Any]:
    """Arguments of both position kernels; q.R of 16-bit queries is a TF32 product, where they are exact."""
    batch, _, heads, channels = query.shape
    return {
        "query": query,
        **dict(zip(("table_h", "table_w", "table_t"), tables, strict=True)),
        "q_batch": query.stride(0),
        "q_token": query.stride(1),
        "q_head": query.stride(2),
        "clips": batch,
        "heads": heads,
        **_grids(q_grid, k_grid),
        "WIDTH": channels,
        "ROWS": _rows(query, q_grid),
        "PRECISION": dot_precision(torch.float32) if query.dtype == torch.float32 else "tf32",
    }


def _rows(query: Tensor, q_grid: Sequence[int]) -> int:
    """Queries of a program of the position kernels; few in float32, whose three TF32 products spill."""
    widest = 16 if query.dtype == torch.float32 else 64 if query.shape[3] <= 128 else 32
    return min(widest, max(16, next_power_of_2(query.shape[0] * query.shape[2] * q_grid[0])))


def _programs(query: Tensor, q_grid: Sequence[int]) -> int:
    tiles = cdiv(query.shape[0] * query.shape[2] * q_grid[0], _rows(query, q_grid))
    return q_grid[1] * q_grid[2] * tiles


def _position(
    query: Tensor,
    key: Tensor,
    tables: Sequence[Tensor],
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    mean_key: Tensor | None = None,
) -> Position:
    """Factors of the bias; ``mean_key`` is filled beside them."""
    batch, queries, heads, _ = query.shape
    positions = sum(k_grid)
    # float16 beside bfloat16 too: the range suffices and three more bits make its rounding the smallest one.
    dtype = torch.float32 if query.dtype == torch.float32 else torch.float16
    products = query.new_empty(batch, heads, queries - 1, position_stride(positions), dtype=dtype)
    onehot = query.new_empty(1 + math.prod(k_grid), sum(column_tiles(positions)), dtype=dtype)
    programs = _programs(query, q_grid)
    PRODUCTS(
        lambda tiles: (programs,),
        **_position_arguments(query, tables, q_grid, k_grid),
        position=products,
        onehot=onehot,
        key=key,
        k_batch=key.stride(0),
        k_token=key.stride(1),
        k_head=key.stride(2),
        mean_key=products if mean_key is None else mean_key,
        MEANS=mean_key is not None,
    )
    return Position(products, onehot)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The op's result and log-sum-exp; arguments of its schema."""
    query, key, value = (contiguous_channels(part) for part in (query, key, value))
    tables = [table.contiguous() for table in (table_h, table_w, table_t)]
    position = _position(query, key, tables, q_grid, k_grid)
    return _attention.forward(query, key, value, position, k_grid, scale)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    out: Tensor,
    log_sum: Tensor,
    q_grid: Sequence[int],
    k_grid: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and the tables; arguments of the backward op's schema."""
    query, key, value = (contiguous_channels(part) for part in (query, key, value))
    tables = [table.contiguous() for table in (table_h, table_w, table_t)]
    mean_key = key.new_empty(key.shape[0], *key.shape[2:], dtype=torch.float32)
    position = _position(query, key, tables, q_grid, k_grid, mean_key)
    partial, grad_key, grad_value, grad_position = _attention.backward(
        grad_out, query, key, value, position, out, log_sum, k_grid, scale, mean_key
    )
    grad_query = torch.empty_like(partial)
    programs = _programs(query, q_grid)
    slots = k_grid[1] + k_grid[2] + tables[2].shape[0]
    parts = query.new_empty(programs, slots, query.shape[3], dtype=torch.float32)
    GRADIENT(
        lambda tiles: (programs,),
        **_position_arguments(query, tables, q_grid, k_grid),
        grad_position=grad_position,
        partial_grad=partial,
        grad_query=grad_query,
        parts=parts,
    )
    grad_h, grad_w, grad_t = (torch.empty_like(table) for table in tables)
    TABLE(
        _table_grid(tables),
        parts=parts,
        grad_h=grad_h,
        grad_w=grad_w,
        grad_t=grad_t,
        partial_grad=partial,
        grad_query=grad_query,
        clips=query.shape[0],
        heads=query.shape[2],
        tiles=programs // (q_grid[1] * q_grid[2]),
        **_grids(q_grid, k_grid),
        WIDTH=query.shape[3],
    )
    return grad_query, grad_key, grad_value, grad_h, grad_w, grad_t


def _table_grid(tables: Sequence[Tensor]) -> Grid:
    """A program for a row of any table."""
    rows, channels = sum(table.shape[0] for table in tables), tables[0].shape[1]
    return lambda tiles: (rows, cdiv(channels, tiles["COLUMNS"]))
