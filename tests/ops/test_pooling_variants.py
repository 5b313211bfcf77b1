"""Options of the pooling ops beyond their schemas: no tables, no residual query, unpooled queries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ifdd_kernels as K
from ifdd_kernels.reference.pooled_attention import relative_index
from ifdd_kernels.testing import relative_error

GRID, Q_GRID, K_GRID = (2, 6, 4), (2, 3, 4), (2, 3, 2)
HEADS, DIM = 2, 8
AXES = (1, 2, 0)  # of the tables of height, width and time


def parts(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 1 + math.prod(grid), HEADS, DIM, generator=generator, dtype=dtype)
        for grid in (Q_GRID, K_GRID, K_GRID)
    ]


def tables(present: tuple[bool, ...]) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    made = [
        torch.randn(2 * max(Q_GRID[axis], K_GRID[axis]) - 1, DIM, generator=generator, dtype=torch.float64)
        for axis in AXES
    ]
    return [table if there else None for table, there in zip(made, present, strict=True)]


def by_hand(
    query: Tensor, key: Tensor, value: Tensor, biases: list[Tensor | None], residual: bool, scale: float
) -> Tensor:
    """Every pair with its own row of every table."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    scores = scale * q @ k.mT
    at_q, at_k = (torch.cartesian_prod(*(torch.arange(size) for size in grid)) for grid in (Q_GRID, K_GRID))
    for axis, table in zip(AXES, biases, strict=True):
        if table is not None:
            index = relative_index(Q_GRID[axis], K_GRID[axis], torch.device("cpu"))
            rows = table[index[at_q[:, axis]][:, at_k[:, axis]]]
            scores = scores + F.pad(torch.einsum("bhqd,qkd->bhqk", q[:, :, 1:], rows), (1, 0, 1, 0))
    out = scores.softmax(-1) @ v
    if residual:
        out = torch.cat((out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]), 2)
    return out.transpose(1, 2).flatten(2)


VARIANTS = [
    (present, residual)
    for present in itertools.product((False, True), repeat=3)
    for residual in (False, True)
    if not (all(present) and residual)
]


@pytest.mark.parametrize(("present", "residual"), VARIANTS)
def test_attention_without_some_tables_or_the_query(present: tuple[bool, ...], residual: bool) -> None:
    backends = ["auto", "sdpa", "reference"]
    inputs = [t.requires_grad_() for t in parts()]
    given = tables(present)
    leaves = inputs + [t.requires_grad_() for t in given if t is not None]
    wanted = by_hand(*inputs, given, residual, 0.3)
    cotangent = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=wanted.dtype)
    grads = torch.autograd.grad(wanted, leaves, cotangent)
    for backend in backends:
        out = K.pooled_attention(
            *inputs, *given, Q_GRID, K_GRID, scale=0.3, residual=residual, backend=backend
        )
        assert relative_error(out, wanted) <= 1e-12
        for actual, expected in zip(torch.autograd.grad(out, leaves, cotangent), grads, strict=True):
            assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("present", [(False,) * 3, (True,) * 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_in_lower_precision(present: tuple[bool, ...], dtype: torch.dtype) -> None:
    inputs = parts()
    given = tables(present)
    wanted = by_hand(*inputs, given, False, DIM**-0.5)
    low = [part.to(dtype) for part in inputs]
    small = [table if table is None else table.to(dtype) for table in given]
    with torch.no_grad():
        for backend in ("auto", "reference"):
            out = K.pooled_attention(*low, *small, Q_GRID, K_GRID, residual=False, backend=backend)
            assert out.dtype == dtype
            assert relative_error(out, wanted) <= 8 * torch.finfo(dtype).eps
        single = [part.float() for part in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            out = K.pooled_attention(*single, *[None] * 3, Q_GRID, K_GRID, residual=False)
            assert out.dtype == torch.bfloat16


def test_attention_refusals() -> None:
    inputs = parts()
    with pytest.raises(RuntimeError, match="pooled_attention: backend 'native' cannot run: without tables"):
        K.pooled_attention(*inputs, None, None, None, Q_GRID, K_GRID, backend="native")
    with pytest.raises(RuntimeError, match="'native' cannot run: without the residual query"):
        K.pooled_attention(*inputs, *tables((True,) * 3), Q_GRID, K_GRID, residual=False, backend="native")
    with pytest.raises(ValueError, match="pooled_attention: unknown backend 'fast'"):
        K.pooled_attention(*inputs, None, None, None, Q_GRID, K_GRID, backend="fast")
    with pytest.raises(ValueError, match="pooled_attention: key must have shape"):
        K.pooled_attention(*inputs, None, None, None, Q_GRID, Q_GRID)
    with pytest.raises(ValueError, match="pooled_attention: query must have shape"):
        K.pooled_attention(inputs[0][0], *inputs[1:], None, None, None, Q_GRID, K_GRID)
    with pytest.raises(TypeError, match="pooled_attention: residual must be a bool"):
        K.pooled_attention(*inputs, None, None, None, Q_GRID, K_GRID, residual=torch.ones(()))
    with pytest.raises(TypeError, match="pooled_attention: table_w must be a tensor"):
        K.pooled_attention(*inputs, None, 1.0, None, Q_GRID, K_GRID)


def pooling(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return {
        "weights": [normal(DIM, 1, 3, 3, 3) for _ in range(2)],
        "norms": [(normal(DIM), normal(DIM)) for _ in range(2)],
        "qkv": normal(2, 1 + math.prod(GRID), 3 * HEADS * DIM),
    }


@pytest.mark.parametrize("apart", [False, True], ids=["packed", "apart"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
def test_unpooled_queries(stride: tuple[int, int, int], apart: bool) -> None:
    made = pooling()
    qkv, (weight_k, weight_v), (norm_k, norm_v) = made["qkv"], made["weights"], made["norms"]
    leaves = [qkv, weight_k, weight_v, *norm_k, *norm_v]
    # As pooled queries of the same call: keys and values are the same, queries are qkv's.
    wanted = [
        qkv[..., : HEADS * DIM].unflatten(-1, (HEADS, DIM)),
        *K.pool_tokens(
            qkv, weight_k, weight_k, weight_v, norm_k, norm_k, norm_v, GRID, HEADS, (1, 1, 1), stride,
            backend="reference",
        )[1:],
    ]  # fmt: skip
    wide = HEADS * DIM
    split: dict[str, Any] = {"key_value": qkv[..., wide:], "key_value_grid": GRID} if apart else {}
    first = qkv[..., :wide] if apart else qkv
    generator = torch.Generator().manual_seed(4)
    cotangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in wanted]
    grads = torch.autograd.grad(wanted, leaves, cotangents)
    for backend in ("auto", "reference"):
        got = K.pool_tokens(
            first, None, weight_k, weight_v, None, norm_k, norm_v, GRID, HEADS, (1, 1, 1), stride,
            **split, backend=backend,
        )  # fmt: skip
        for actual, expected in zip(got, wanted, strict=True):
            assert relative_error(actual, expected) <= 1e-12
        for actual, expected in zip(torch.autograd.grad(got, leaves, cotangents), grads, strict=True):
            assert relative_error(actual, expected) <= 1e-12


def test_unpooled_queries_under_autocast() -> None:
    made = pooling(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        query, key, value = K.pool_tokens(
            made["qkv"], None, *made["weights"], None, *made["norms"], GRID, HEADS
        )
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16


def test_pooling_refusals() -> None:
    made = pooling()
    qkv, weights, norms = made["qkv"], made["weights"], made["norms"]

    def call(first: Any = qkv, weight: Any = weights[0], norm: Any = norms[0], **options: Any) -> None:
        K.pool_tokens(first, None, weight, weights[1], None, norm, norms[1], GRID, HEADS, **options)

    with pytest.raises(TypeError, match="pool_tokens: weight_q must be a tensor"):
        K.pool_tokens(qkv, None, *weights, norms[0], *norms, GRID, HEADS)
    with pytest.raises(TypeError, match=r"pool_tokens: norm_q must be .weight, bias., got NoneType"):
        K.pool_tokens(qkv, weights[0], *weights, None, *norms, GRID, HEADS)
    with pytest.raises(ValueError, match=r"stride_q must be \(1, 1, 1\) where weight_q is None"):
        call(stride_q=(1, 2, 2))
    with pytest.raises(ValueError, match="pool_tokens: weight_k must have shape"):
        call(weight=weights[0][:3])
    with pytest.raises(TypeError, match="pool_tokens: weight_k must be a tensor, got NoneType"):
        call(weight=None)
    with pytest.raises(TypeError, match="pool_tokens: norm_k's bias must be a tensor"):
        call(norm=(norms[0][0], None))
    with pytest.raises(ValueError, match=r"pool_tokens: qkv must have 1 [+] 48 tokens"):
        call(qkv[:, :5])
    with pytest.raises(ValueError, match="key_value_grid must equal grid"):
        call(key_value_grid=(1, 1, 1))
