"""Kernels that pooled_attention and lifting_attention share: one attention, with or without positions.

Scores live on chip in units of log 2, s' = log2(e) (scale q.k + bias), so that probabilities are exp2. The
decomposed position bias of a tile is a second product, (queries, E) with (E, keys): the first factor holds
q.R of the query for every coordinate a key can have (E = T + H + W of the key grid, see
pooled_attention.py), the second one is 1 where a key has that coordinate. Both are small and read from
memory: a one-hot tile built in registers costs integer work for every tile of queries, and on sm_80, where
each warp would build all of it, spills.

A head of d channels is a tuple of one or two tiles (96 = 64 + 32): products over an axis padded to the next
power of two would waste a quarter of them.

Forward and the gradient of the queries walk over the keys in full tiles without masks, start from the class
key (key 0, no bias) where there is one, and end with one narrow masked tile for what is left: 392 keys are
6 x 64 + 16, not 7 x 64. Key and value gradients split over the queries: a program owns a tile of keys and a
chunk of queries; partial sums of several chunks are added in order by a last kernel. No atomics.

K_T = K_H = K_W = 0 means attention without positions: no class token, values as the residual
(lifting_attention). With a key grid, token 0 is the class token and the residual is the query of all others
(pooled_attention).
"""

# A tuple of tiles grows piece by piece in kernels; to mypy each step is another type.
# mypy: disable-error-code=assignment

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import (
    OLDER_COMPILER,
    Arguments,
    Kernel,
    architecture,
    cdiv,
    dot_precision,
    next_power_of_2,
)
from ifdd_kernels.triton._tuning import Config

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
#: The running maximum starts here and not at -inf, so that a tile of scores -inf subtracts no infinities.
LOWEST = tl.constexpr(-3.0e38)


@triton.constexpr_function
def column_tiles(width, narrow=False):
    """Widths of the tiles a row of ``width`` columns is cut into: one or two powers of two, 16 or more.

    ``narrow`` (float32): as many of 32 as it takes. A product of three TF32 products splits its whole factors
    in registers; cut along the sum, only one piece at a time is there.
    """
    if width == 0:
        return ()
    if narrow:
        rest = width % 32
        return (32,) * (width // 32) + ((32 if rest > 16 else 16,) if rest else ())
    whole = triton.next_power_of_2(max(width, 16))
    rest = triton.next_power_of_2(max(width - whole // 2, 16))
    return (whole // 2, rest) if whole >= 32 and whole // 2 + rest < whole else (whole,)


@triton.constexpr_function
def tile_width(parts, i):
    """parts[i]; Triton 3.6 takes no plain subscript of a tuple in a shape."""
    return parts[i]


@triton.constexpr_function
def sum_of(parts):
    """Columns of all tiles."""
    return sum(parts)


@triton.constexpr_function
def whole_tile(width):
    """``width`` rounded up to a power of two."""
    return triton.next_power_of_2(width)


@triton.constexpr_function
def position_stride(positions):
    """Elements of a row of q.R in memory: 16 bytes or more are read at once."""
    return (positions + 7) // 8 * 8


@triton.jit
def load_tiles(rows, inside, WIDTH: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr):
    """Column tiles of the rows at pointers ``rows``, zeros past WIDTH and, MASKED, where not ``inside``."""
    tiles = ()
    for i in tl.static_range(len(PARTS)):
        columns = i * PARTS[0] + tl.arange(0, PARTS[i])
        pointers = rows[:, None] + columns[None, :]
        if i * PARTS[0] + PARTS[i] > WIDTH:
            kept = inside[:, None] & (columns < WIDTH)[None, :]
            tiles = tiles + (tl.load(pointers, mask=kept, other=0.0),)
        elif MASKED:
            tiles = tiles + (tl.load(pointers, mask=inside[:, None], other=0.0),)
        else:
            tiles = tiles + (tl.load(pointers),)
    return tiles


@triton.jit
def _piece(tiles, i: tl.constexpr, rows, inside, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """tiles[i]; float32 is read here, and not before, from the rows at pointers ``rows``.

    As three TF32 products a factor is split in registers. Two whole factors fill them, one piece does not.
    In a loop ``rows`` must look as if they changed, or the compiler reads them once, before it.
    """
    if rows.dtype.element_ty == tl.float32:
        columns = i * PARTS[0] + tl.arange(0, PARTS[i])
        kept = inside[:, None] & (columns < WIDTH)[None, :]
        piece = tl.load(rows[:, None] + columns[None, :], mask=kept, other=0.0)
    else:
        piece = tiles[i]
    return piece


@triton.jit
def _held(rows, inside, WIDTH: tl.constexpr, PARTS: tl.constexpr, MASKED: tl.constexpr):
    """Tiles that products take; of float32 none, see :func:`_piece`."""
    tiles = ()
    if rows.dtype.element_ty != tl.float32:
        tiles = load_tiles(rows, inside, WIDTH, PARTS, MASKED)
    return tiles


@triton.jit
def store_tiles(rows, inside, tiles, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    for i in tl.static_range(len(PARTS)):
        columns = i * PARTS[0] + tl.arange(0, PARTS[i])
        kept = inside[:, None] & (columns < WIDTH)[None, :]
        tl.store(rows[:, None] + columns[None, :], tiles[i].to(rows.dtype.element_ty), mask=kept)


@triton.jit
def zeros(ROWS: tl.constexpr, PARTS: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(PARTS)):
        tiles = tiles + (tl.zeros((ROWS, tile_width(PARTS, i)), tl.float32),)
    return tiles


@triton.jit
def _scaled(tiles, factor):
    """Rows times ``factor``, a number or a column."""
    scaled = ()
    for i in tl.static_range(len(tiles)):
        scaled = scaled + (tiles[i] * factor,)
    return scaled


@triton.jit
def cast(tiles, dtype: tl.constexpr):
    converted = ()
    for i in tl.static_range(len(tiles)):
        converted = converted + (tiles[i].to(dtype),)
    return converted


@triton.jit
def plus(tiles, others):
    sums = ()
    for i in tl.static_range(len(tiles)):
        sums = sums + (tiles[i] + others[i].to(tl.float32),)
    return sums


@triton.jit
def _row_dot(tiles, others):
    """Sum over the columns of a product, a number a row, in float32."""
    total = tl.sum(tiles[0].to(tl.float32) * others[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(tiles)):
        total += tl.sum(tiles[i].to(tl.float32) * others[i].to(tl.float32), 1)
    return total


@triton.jit
def inner(left, right, PRECISION: tl.constexpr):
    """left right^T, over all columns."""
    product = tl.dot(left[0], tl.trans(right[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(left)):
        product = tl.dot(left[i], tl.trans(right[i]), product, input_precision=PRECISION)
    return product


@triton.jit
def accumulate(sums, weights, rows, PRECISION: tl.constexpr):
    """sums + weights rows; float32 weights are rounded only for 16-bit rows."""
    result = ()
    for i in tl.static_range(len(rows)):
        factor = weights.to(rows[i].dtype)
        result = result + (tl.dot(factor, rows[i], sums[i], input_precision=PRECISION),)
    return result


@triton.jit
def _inner_of(
    left, left_rows, left_inside, right, right_rows, right_inside,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left right^T of :func:`_held` tiles."""
    x = _piece(left, 0, left_rows, left_inside, WIDTH, PARTS)
    y = _piece(right, 0, right_rows, right_inside, WIDTH, PARTS)
    product = tl.dot(x, tl.trans(y), input_precision=PRECISION)
    for i in tl.static_range(1, len(PARTS)):
        x = _piece(left, i, left_rows, left_inside, WIDTH, PARTS)
        y = _piece(right, i, right_rows, right_inside, WIDTH, PARTS)
        product = tl.dot(x, tl.trans(y), product, input_precision=PRECISION)
    return product


@triton.jit
def _accumulate_of(
    sums, weights, tiles, rows, inside, WIDTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr
):
    """:func:`accumulate` of :func:`_held` tiles."""
    result = ()
    for i in tl.static_range(len(PARTS)):
        piece = _piece(tiles, i, rows, inside, WIDTH, PARTS)
        result = result + (tl.dot(weights.to(piece.dtype), piece, sums[i], input_precision=PRECISION),)
    return result


@triton.jit
def _mean_onehot(K_GRID: tl.constexpr, PARTS: tl.constexpr):
    """(1, E): mean of the one-hot rows of all keys with a position."""
    tiles = ()
    for i in tl.static_range(len(PARTS)):
        column = (i * PARTS[0] + tl.arange(0, PARTS[i]))[None, :]
        of_space = tl.where(column < K_GRID[0] + K_GRID[1], 1.0 / K_GRID[1], 1.0 / K_GRID[2])
        tiles = tiles + (tl.where(column < K_GRID[0], 1.0 / K_GRID[0], of_space),)
    return tiles


@triton.jit
def _onehot_rows(onehot, key, inside, POSITIONS: tl.constexpr, MASKED: tl.constexpr):
    """(keys, E): 1 at the columns of a key's coordinates, none for the class key."""
    tiles = ()
    if len(POSITIONS) > 0:
        COLUMNS: tl.constexpr = sum_of(POSITIONS)
        tiles = load_tiles(onehot + key * COLUMNS, inside, COLUMNS, POSITIONS, MASKED)
    return tiles


@triton.jit
def _softmax_step(
    sums, total, largest, q, q_rows, q_inside, position, keys_at, values_at, onehot_all, start, keys, scale,
    zero, POSITIONS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over BLOCK keys from ``start``; ``*_at`` is (pointer, token stride) of a head."""
    key = start + tl.arange(0, BLOCK)
    inside = key < keys
    k_rows = keys_at[0] + key * keys_at[1]
    k = _held(k_rows, inside, WIDTH, PARTS, MASKED)
    onehot = _onehot_rows(onehot_all, key, inside, POSITIONS, MASKED)
    scores = _inner_of(q, q_rows + start * zero, q_inside, k, k_rows, inside, WIDTH, PARTS, PRECISION) * scale
    if len(POSITIONS) > 0:
        scores += inner(position, onehot, PRECISION)
    if MASKED:
        scores = tl.where(inside[None, :], scores, -float("inf"))
    raised = tl.maximum(largest, tl.max(scores, 1))
    probability = tl.exp2(scores - raised[:, None])
    shrink = tl.exp2(largest - raised)
    v_rows = values_at[0] + key * values_at[1]
    v = _held(v_rows, inside, WIDTH, PARTS, MASKED)
    sums = _scaled(sums, shrink[:, None])
    sums = _accumulate_of(sums, probability, v, v_rows, inside, WIDTH, PARTS, PRECISION)
    return sums, total * shrink + tl.sum(probability, 1), raised


@triton.jit
def _head(program, tiles, heads):
    """Tile, and clip and head (int64), of a program; tiles of one head are neighbours and share its keys."""
    batch_head = (program // tiles).to(tl.int64)
    return program % tiles, batch_head, batch_head // heads, batch_head % heads


@triton.jit
def attention_forward(
    query, key, value, position, onehot, out, log_sum,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    queries, keys, heads, scale, zero,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries against all keys of a head; out (B, Nq, h*d), log_sum (B, h, Nq)."""
    E: tl.constexpr = K_T + K_H + K_W
    POOLED: tl.constexpr = E > 0
    POSITIONS: tl.constexpr = column_tiles(E)
    PARTS: tl.constexpr = column_tiles(WIDTH, query.dtype.element_ty == tl.float32)
    tile, batch_head, batch, head = _head(tl.program_id(0), tl.cdiv(queries, BLOCK_Q), heads)
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = row < queries
    q_rows = query + batch * q_batch + head * q_head + row * q_token
    q = load_tiles(q_rows, inside, WIDTH, PARTS, True)
    keys_at = (key + batch * k_batch + head * k_head, k_token)
    values_at = (value + batch * v_batch + head * v_head, v_token)

    bias = ()
    first = 0
    if POOLED:
        rows = position + batch_head * (queries - 1) * position_stride(E) + (row - 1) * position_stride(E)
        bias = load_tiles(rows, inside & (row > 0), E, POSITIONS, True)
        first = 1
        one = tl.arange(0, 1)
        score = _row_dot(q, load_tiles(keys_at[0] + one, one == 0, WIDTH, PARTS, False)) * scale
        largest = tl.maximum(score, LOWEST)
        total = tl.exp2(score - largest)
        v = load_tiles(values_at[0] + one, one == 0, WIDTH, PARTS, False)
        sums = _scaled(cast(v, tl.float32), total[:, None])
    else:
        largest = tl.full((BLOCK_Q,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_Q,), tl.float32)
        sums = zeros(BLOCK_Q, PARTS)

    full = first + (keys - first) // BLOCK_K * BLOCK_K
    for start in tl.range(first, full, BLOCK_K):
        sums, total, largest = _softmax_step(
            sums, total, largest, q, q_rows, inside, bias, keys_at, values_at, onehot, start, keys,
            scale, zero, POSITIONS, WIDTH, PARTS, BLOCK_K, False, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        sums, total, largest = _softmax_step(
            sums, total, largest, q, q_rows, inside, bias, keys_at, values_at, onehot, full, keys,
            scale, zero, POSITIONS, WIDTH, PARTS, TAIL, True, PRECISION,
        )  # fmt: skip

    result = _scaled(sums, (1.0 / total)[:, None])
    if POOLED:
        # Read again: kept in registers across the loop it would spill.
        residual = load_tiles(q_rows, inside & (row > 0), WIDTH, PARTS, True)
        result = plus(result, residual)
    else:
        result = plus(result, load_tiles(values_at[0] + row * values_at[1], inside, WIDTH, PARTS, True))
    joined = (batch * queries * heads + head) * WIDTH + row * (heads * WIDTH)
    store_tiles(out + joined, inside, result, WIDTH, PARTS)
    tl.store(log_sum + batch_head * queries + row, (largest + tl.log2(total)) * LN2, mask=inside)


@triton.jit
def _query_gradient_step(
    sums, position_sums, excess, q, q_rows, q_inside, position, position_rows, position_inside, g, g_rows,
    delta, log_sum, keys_at, values_at, onehot_all, start, keys, scale, zero,
    E: tl.constexpr, POSITIONS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds dS K and dS onehot of BLOCK keys from ``start``, and the rows' sum of dS."""
    key = start + tl.arange(0, BLOCK)
    inside = key < keys
    k_rows = keys_at[0] + key * keys_at[1]
    k = _held(k_rows, inside, WIDTH, PARTS, MASKED)
    onehot = _onehot_rows(onehot_all, key, inside, POSITIONS, MASKED)
    scores = _inner_of(q, q_rows + start * zero, q_inside, k, k_rows, inside, WIDTH, PARTS, PRECISION) * scale
    if len(POSITIONS) > 0:
        if q_rows.dtype.element_ty == tl.float32:
            position = load_tiles(position_rows + start * zero, position_inside, E, POSITIONS, True)
        scores += inner(position, onehot, PRECISION)
    if MASKED:
        scores = tl.where(inside[None, :], scores, -float("inf"))
    probability = tl.exp2(scores - log_sum[:, None])
    v_rows = values_at[0] + key * values_at[1]
    v = _held(v_rows, inside, WIDTH, PARTS, MASKED)
    product = _inner_of(g, g_rows + start * zero, q_inside, v, v_rows, inside, WIDTH, PARTS, PRECISION)
    grad_scores = probability * (product - delta[:, None])
    sums = _accumulate_of(sums, grad_scores, k, k_rows, inside, WIDTH, PARTS, PRECISION)
    if len(POSITIONS) > 0:
        columns = cast(onehot, k_rows.dtype.element_ty)
        position_sums = accumulate(position_sums, grad_scores, columns, PRECISION)
    return sums, position_sums, excess + tl.sum(grad_scores, 1)


@triton.jit
def attention_query_gradient(
    grad, query, key, value, mean_key, position, onehot, out, log_sum, grad_query, grad_position, delta_out,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    queries, keys, heads, scale, score_scale, zero,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ without the part through the bias, the gradient of q.R, and delta = rowsum(dP P) (B, h, Nq)."""
    K_GRID: tl.constexpr = (K_T, K_H, K_W)
    E: tl.constexpr = K_T + K_H + K_W
    POOLED: tl.constexpr = E > 0
    POSITIONS: tl.constexpr = column_tiles(E)
    PARTS: tl.constexpr = column_tiles(WIDTH, query.dtype.element_ty == tl.float32)
    tile, batch_head, batch, head = _head(tl.program_id(0), tl.cdiv(queries, BLOCK_Q), heads)
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = row < queries
    q_rows = query + batch * q_batch + head * q_head + row * q_token
    q = load_tiles(q_rows, inside, WIDTH, PARTS, True)
    joined = (batch * queries * heads + head) * WIDTH + row * (heads * WIDTH)
    g = load_tiles(grad + joined, inside, WIDTH, PARTS, True)
    o = load_tiles(out + joined, inside, WIDTH, PARTS, True)
    lse = tl.load(log_sum + batch_head * queries + row, mask=inside, other=0.0) * LOG2E
    keys_at = (key + batch * k_batch + head * k_head, k_token)
    values_at = (value + batch * v_batch + head * v_head, v_token)
    has_position = inside & (row > 0)
    one = tl.arange(0, 1)

    bias = ()
    bias_rows = q_rows
    position_sums = ()
    position_row = batch_head * (queries - 1) * position_stride(E) + (row - 1) * position_stride(E)
    if POOLED:
        bias_rows = position + position_row
        bias = load_tiles(bias_rows, has_position, E, POSITIONS, True)
        position_sums = zeros(BLOCK_Q, POSITIONS)
        delta = _row_dot(g, o) - tl.where(row > 0, _row_dot(g, q), 0.0)
    else:
        residual = load_tiles(values_at[0] + row * values_at[1], inside, WIDTH, PARTS, True)
        delta = _row_dot(g, o) - _row_dot(g, residual)
    excess = tl.zeros((BLOCK_Q,), tl.float32)
    sums = zeros(BLOCK_Q, PARTS)

    full = keys // BLOCK_K * BLOCK_K
    for start in tl.range(0, full, BLOCK_K):
        sums, position_sums, excess = _query_gradient_step(
            sums, position_sums, excess, q, q_rows, inside, bias, bias_rows, has_position, g, grad + joined,
            delta, lse, keys_at, values_at, onehot, start, keys, score_scale, zero,
            E, POSITIONS, WIDTH, PARTS, BLOCK_K, False, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        sums, position_sums, excess = _query_gradient_step(
            sums, position_sums, excess, q, q_rows, inside, bias, bias_rows, has_position, g, grad + joined,
            delta, lse, keys_at, values_at, onehot, full, keys, score_scale, zero,
            E, POSITIONS, WIDTH, PARTS, TAIL, True, PRECISION,
        )  # fmt: skip

    # Rows of dS sum to nothing. What they do sum to is the rounding of a 16-bit ``out`` in delta, the same
    # for all keys of a row: it is taken off along their mean, and the key gradient gets the exact delta.
    mean = load_tiles(mean_key + batch_head * WIDTH + one, one == 0, WIDTH, PARTS, False)
    result = _scaled(plus(sums, _scaled(mean, -excess[:, None])), scale)
    if POOLED:
        # Read again: kept in registers across the loop it would spill.
        result = plus(result, load_tiles(grad + joined, has_position, WIDTH, PARTS, True))
        position_sums = plus(position_sums, _scaled(_mean_onehot(K_GRID, POSITIONS), -excess[:, None]))
        store_tiles(grad_position + position_row, has_position, position_sums, E, POSITIONS)
    store_tiles(grad_query + joined, inside, result, WIDTH, PARTS)
    tl.store(delta_out + batch_head * queries + row, delta + excess, mask=inside)


@triton.jit
def attention_key_gradient(
    grad, query, key, value, position, onehot, log_sum, delta_in, grad_key, grad_value,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    queries, keys, heads, batches, chunk, scale, score_scale, zero,
    K_T: tl.constexpr, K_H: tl.constexpr, K_W: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key and value gradients of a tile of keys from ``chunk`` queries, (chunks, B, Nk, h, d) both."""
    E: tl.constexpr = K_T + K_H + K_W
    POOLED: tl.constexpr = E > 0
    POSITIONS: tl.constexpr = column_tiles(E)
    PARTS: tl.constexpr = column_tiles(WIDTH, query.dtype.element_ty == tl.float32)
    tile, batch_head, batch, head = _head(tl.program_id(0), tl.cdiv(keys, BLOCK_K), heads)
    key_row = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    key_inside = key_row < keys
    key_row64 = key_row.to(tl.int64)
    k_rows = key + batch * k_batch + head * k_head + key_row64 * k_token
    v_rows = value + batch * v_batch + head * v_head + key_row64 * v_token
    k = _held(k_rows, key_inside, WIDTH, PARTS, True)
    v = _held(v_rows, key_inside, WIDTH, PARTS, True)
    columns = _onehot_rows(onehot, key_row, key_inside, POSITIONS, True)
    queries_at = query + batch * q_batch + head * q_head
    grads_at = grad + (batch * queries * heads + head) * WIDTH
    key_sums = zeros(BLOCK_K, PARTS)
    value_sums = zeros(BLOCK_K, PARTS)

    begin = tl.program_id(1) * chunk
    for start in tl.range(begin, tl.minimum(begin + chunk, queries), BLOCK_Q):
        row = start + tl.arange(0, BLOCK_Q)
        inside = row < queries
        row64 = row.to(tl.int64)
        q_rows = queries_at + row64 * q_token
        q = _held(q_rows, inside, WIDTH, PARTS, True)
        # Rows past the end have probability exp2(-inf) = 0.
        lse = tl.load(log_sum + batch_head * queries + row, mask=inside, other=float("inf")) * LOG2E
        delta = tl.load(delta_in + batch_head * queries + row, mask=inside, other=0.0)
        # Transposed, (keys, queries), so that both products below take it as their left factor.
        again = start * zero
        scores = _inner_of(k, k_rows + again, key_inside, q, q_rows, inside, WIDTH, PARTS, PRECISION)
        scores *= score_scale
        if POOLED:
            rows = position + (batch_head * (queries - 1) + row64 - 1) * position_stride(E)
            bias = load_tiles(rows, inside & (row > 0), E, POSITIONS, True)
            scores += inner(columns, bias, PRECISION)
        probability = tl.exp2(scores - lse[None, :])
        g_rows = grads_at + row64 * heads * WIDTH
        g = _held(g_rows, inside, WIDTH, PARTS, True)
        value_sums = _accumulate_of(value_sums, probability, g, g_rows, inside, WIDTH, PARTS, PRECISION)
        product = _inner_of(v, v_rows + again, key_inside, g, g_rows, inside, WIDTH, PARTS, PRECISION)
        grad_scores = probability * (product - delta[None, :])
        key_sums = _accumulate_of(key_sums, grad_scores, q, q_rows, inside, WIDTH, PARTS, PRECISION)

    if not POOLED:
        # The value residual: token i of the values also reaches query i, in the chunk that has it.
        mine = key_inside & (key_row >= begin) & (key_row < begin + chunk)
        own = load_tiles(grads_at + key_row64 * (heads * WIDTH), mine, WIDTH, PARTS, True)
        value_sums = plus(value_sums, own)
    rows = (((tl.program_id(1) * batches + batch) * keys + key_row64) * heads + head) * WIDTH
    store_tiles(grad_key + rows, key_inside, _scaled(key_sums, scale), WIDTH, PARTS)
    store_tiles(grad_value + rows, key_inside, value_sums, WIDTH, PARTS)


@triton.jit
def sum_chunks(key_parts, value_parts, grad_key, grad_value, count, chunks, BLOCK: tl.constexpr):
    """(chunks, count) float32 -> (count,) in the gradients' dtype, chunks added in order."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    key_sum = tl.zeros((BLOCK,), tl.float32)
    value_sum = tl.zeros((BLOCK,), tl.float32)
    part = place
    for _ in range(chunks):
        key_sum += tl.load(key_parts + part, mask=inside, other=0.0)
        value_sum += tl.load(value_parts + part, mask=inside, other=0.0)
        part += count
    tl.store(grad_key + place, key_sum.to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + place, value_sum.to(grad_value.dtype.element_ty), mask=inside)


#: (BLOCK_Q, BLOCK_K, warps, stages), the default first.
Tiles = list[tuple[int, int, int, int]]


def _walk(
    choices: Callable[[Arguments], Tiles], class_key_first: bool
) -> Callable[[Arguments], list[Config]]:
    """Configurations of a kernel that walks over the keys, with the tail each BLOCK_K leaves."""

    def configs(arguments: Arguments) -> list[Config]:
        return [
            Config({"BLOCK_Q": q, "BLOCK_K": k, "TAIL": _tail(arguments, k, class_key_first)}, warps, stages)
            for q, k, warps, stages in choices(arguments)
        ]

    return configs


def _tail(arguments: Arguments, block: int, class_key_first: bool) -> int:
    """Width of the last, masked tile of keys: what full tiles leave, to the next power of two."""
    rest = (arguments["keys"] - (class_key_first and arguments["K_T"] > 0)) % block
    return max(16, next_power_of_2(rest)) if rest else 0


def _interpreted(arguments: Arguments) -> dict[str, int]:
    """Large tiles, yet several where there are enough tokens."""
    return {
        "BLOCK_Q": 256 if arguments["queries"] > 64 else 16,
        "BLOCK_K": 128 if arguments["keys"] > 64 else 16,
    }


def _interpreted_walk(class_key_first: bool) -> Callable[[Arguments], dict[str, int]]:
    def tiles(arguments: Arguments) -> dict[str, int]:
        blocks = _interpreted(arguments)
        return {**blocks, "TAIL": _tail(arguments, blocks["BLOCK_K"], class_key_first)}

    return tiles


def _forward_tiles(arguments: Arguments) -> Tiles:
    if arguments["query"].dtype == torch.float32:
        return [(64, 16, 8, 2)]
    # sm_80 holds factors in registers: 64 keys to a program of 4 warps spill.
    return [(128, 64, 8, 2), (64, 64 if architecture() >= 90 else 32, 4, 2)]


def _query_gradient_tiles(arguments: Arguments) -> Tiles:
    if arguments["query"].dtype == torch.float32:
        # Triton splits a chain of products over its warps along the longer side. With the keys that is, each
        # warp holds a part of a tile of keys; along the queries each would hold all of it, and spill.
        if OLDER_COMPILER:  # see query_gradient_precision
            wide = (16, 32, 8, 2) if arguments["WIDTH"] > 64 else (32, 16, 8, 2)
            return [{"tf32": (64, 32, 8, 2), "tf32x3": wide}.get(arguments["PRECISION"], (32, 32, 8, 2))]
        return [(16, 32, 4, 2)]
    if OLDER_COMPILER and architecture() < 90:
        return [(64, 32, 8, 2)]
    # sm_80 holds factors of products in registers, later devices in shared memory. There 64 keys still spill
    # with a bias, whose gradient is summed beside that of q (14 x 14 keys: 9 and 14 stores).
    block = 64 if architecture() >= 90 and arguments["K_T"] == 0 else 32
    return [(128, block, 8, 2), (64, block, 4, 2)]


def _key_gradient_configs(arguments: Arguments) -> list[Config]:
    if arguments["query"].dtype == torch.float32:
        # With fewer keys three TF32 products of heads of 40 channels spill before Triton 3.8.
        tiles = [(16, 64, 8, 2) if OLDER_COMPILER and arguments["PRECISION"] == "tf32x3" else (32, 16, 8, 2)]
    elif architecture() < 90:
        tiles = [(16, 64, 8, 2) if OLDER_COMPILER else (32, 128, 8, 2)]
    elif arguments["K_T"] == 0:
        tiles = [(64, 128, 8, 2)] if OLDER_COMPILER else [(64, 128, 8, 2), (64, 64, 4, 2)]
    else:  # those two spill (14 x 14 keys: 2 stores and 1)
        tiles = [(64, 64, 8, 2), (32, 128, 8, 2)]
    return [Config({"BLOCK_Q": q, "BLOCK_K": k}, warps, stages) for q, k, warps, stages in tiles]


def query_gradient_precision(precision: str, pooled: bool) -> str:
    """Of the query gradient's products.

    Before Triton 3.8 three TF32 products with a bias spill in every tile (14 x 14 keys: 44 to 441 stores);
    products outside the tensor cores do not.
    """
    return "ieee" if OLDER_COMPILER and pooled and precision == "tf32x3" else precision


_KEY = ("queries", "keys", "heads")
FORWARD = Kernel(attention_forward, _walk(_forward_tiles, True), _KEY, _interpreted_walk(True))
QUERY_GRADIENT = Kernel(
    attention_query_gradient, _walk(_query_gradient_tiles, False), _KEY, _interpreted_walk(False)
)
KEY_GRADIENT = Kernel(attention_key_gradient, _key_gradient_configs, _KEY, _interpreted)
SUM_CHUNKS = Kernel(
    sum_chunks, lambda arguments: [Config({"BLOCK": 1024})], interpreter=lambda arguments: {"BLOCK": 1 << 16}
)


@dataclass(frozen=True)
class Position:
    """Factors of the position bias, in a dtype that need not be the query's."""

    #: log2(e) q.R for every key coordinate, (B, h, Nq - 1, position_stride(E)).
    products: Tensor
    #: (Nk, tiles of E): 1 at the coordinates of a key.
    onehot: Tensor


#: A pass over the queries is split so that about this many programs of 64 keys run, by the shape alone, ...
PROGRAMS = 512
#: ... but not into chunks of fewer queries, for partial sums are memory traffic.
CHUNK = 512


def _query_chunk(batch_heads: int, queries: int, keys: int) -> int:
    """Queries of a chunk of the key gradient, a multiple of every BLOCK_Q."""
    wanted = cdiv(PROGRAMS, batch_heads * cdiv(keys, 64))
    return 128 * cdiv(max(CHUNK, cdiv(queries, wanted)), 128)


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, position: Position | None, k_grid: Sequence[int]
) -> dict[str, Any]:
    """What the launches of one call have in common; the last axis of the tensors is dense."""
    strides = {
        f"{letter}_{axis}": tensor.stride(place)
        for letter, tensor in (("q", query), ("k", key), ("v", value))
        for place, axis in enumerate(("batch", "token", "head"))
    }
    return {
        "query": query,
        "key": key,
        "value": value,
        "position": position.products if position else None,
        "onehot": position.onehot if position else None,
        **strides,
        "queries": query.shape[1],
        "keys": key.shape[1],
        "heads": query.shape[2],
        **dict(zip(("K_T", "K_H", "K_W"), k_grid, strict=True)),
        "WIDTH": query.shape[3],
        "PRECISION": dot_precision(query.dtype),
        "zero": 0,
    }


def forward(
    query: Tensor, key: Tensor, value: Tensor, position: Position | None, k_grid: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Result (B, Nq, h*d) with its residual, and log-sum-exp (B, h, Nq)."""
    batch, queries, heads, channels = query.shape
    out = query.new_empty(batch, queries, heads * channels)
    log_sum = query.new_empty(batch, heads, queries, dtype=torch.float32)
    FORWARD(
        lambda tiles: (cdiv(queries, tiles["BLOCK_Q"]) * batch * heads,),
        **_arguments(query, key, value, position, k_grid),
        out=out,
        log_sum=log_sum,
        scale=scale * LOG2E.value,
    )
    return out, log_sum


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, position: Position | None, out: Tensor,
    log_sum: Tensor, k_grid: Sequence[int], scale: float, mean_key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of query (without its part through the bias), key, value and q.R (laid out as Position).

    ``mean_key``, (B, h, d) in float32, is formed here if it is not given.
    """
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    common = _arguments(query, key, value, position, k_grid)
    common |= {
        "grad": grad.contiguous(),
        "log_sum": log_sum.contiguous(),
        "scale": scale,
        "score_scale": scale * LOG2E.value,
    }
    grad_query = query.new_empty(query.shape)
    grad_position = None if position is None else torch.empty_like(position.products, dtype=query.dtype)
    delta = torch.empty_like(common["log_sum"])
    QUERY_GRADIENT(
        lambda tiles: (cdiv(queries, tiles["BLOCK_Q"]) * batch * heads,),
        **{**common, "PRECISION": query_gradient_precision(common["PRECISION"], position is not None)},
        mean_key=key.mean(1, dtype=torch.float32) if mean_key is None else mean_key,
        out=out.contiguous(),
        grad_query=grad_query,
        grad_position=grad_position,
        delta_out=delta,
    )
    chunk = _query_chunk(max(batch * heads, 1), queries, keys)
    chunks = cdiv(queries, chunk)
    grad_key, grad_value = query.new_empty(key.shape), query.new_empty(key.shape)
    partial = [grad_key, grad_value]
    if chunks > 1:
        partial = [query.new_empty(chunks, *key.shape, dtype=torch.float32) for _ in range(2)]
    KEY_GRADIENT(
        lambda tiles: (cdiv(keys, tiles["BLOCK_K"]) * batch * heads, chunks),
        **common,
        delta_in=delta,
        grad_key=partial[0],
        grad_value=partial[1],
        batches=batch,
        chunk=chunk,
    )
    if chunks > 1:
        count = key.numel()
        SUM_CHUNKS(
            lambda tiles: (cdiv(count, tiles["BLOCK"]),),
            key_parts=partial[0],
            value_parts=partial[1],
            grad_key=grad_key,
            grad_value=grad_value,
            count=count,
            chunks=chunks,
        )
    return grad_query, grad_key, grad_value, grad_position
