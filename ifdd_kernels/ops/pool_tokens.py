"""``pool_tokens``: pooling of queries, keys and values in an MViTv2 block, in token layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, Gradient, Operator, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator

Norm = tuple[Tensor, Tensor]


def pooled_grid(grid: Sequence[int], stride: Sequence[int]) -> tuple[int, int, int]:
    """Grid after a 3x3x3 pooling with padding 1: ceil(size / stride) on each axis."""
    t, h, w = (-(-size // step) for size, step in zip(grid, stride, strict=True))
    return t, h, w


def _check_arguments(
    qkv: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_bias_q: Tensor,
    norm_weight_k: Tensor,
    norm_bias_k: Tensor,
    norm_weight_v: Tensor,
    norm_bias_v: Tensor,
    grid: Sequence[int],
    heads: int,
    stride_q: Sequence[int],
    stride_kv: Sequence[int],
    eps: float,
) -> None:
    op = "pool_tokens"
    _check.shape(op, "qkv", qkv, ("B", "1+T*H*W", "3*h*d"))
    _check.floating(op, "qkv", qkv)
    _check.triple(op, "grid", grid)
    _check.triple(op, "stride_q", stride_q)
    _check.triple(op, "stride_kv", stride_kv)
    _check.positive(op, heads=heads, eps=eps)
    cells = grid[0] * grid[1] * grid[2]
    if qkv.shape[1] != 1 + cells:
        raise ValueError(f"{op}: qkv must have 1 + {cells} tokens for grid {tuple(grid)}, got {qkv.shape[1]}")
    if qkv.shape[2] % (3 * heads) or qkv.shape[2] == 0:
        raise ValueError(
            f"{op}: qkv's last axis must be a positive multiple of 3 * heads = {3 * heads},"
            f" got {qkv.shape[2]}"
        )
    channels = qkv.shape[2] // (3 * heads)
    for name, weight in (("weight_q", weight_q), ("weight_k", weight_k), ("weight_v", weight_v)):
        _check.parameter(op, name, weight, (channels, 1, 3, 3, 3), "qkv", qkv)
    for name, value in (
        ("norm_weight_q", norm_weight_q),
        ("norm_bias_q", norm_bias_q),
        ("norm_weight_k", norm_weight_k),
        ("norm_bias_k", norm_bias_k),
        ("norm_weight_v", norm_weight_v),
        ("norm_bias_v", norm_bias_v),
    ):
        _check.parameter(op, name, value, (channels,), "qkv", qkv)


def _fake(qkv: Tensor, weight_q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    grid, heads, stride_q, stride_kv = rest[8:12]
    batch, channels = qkv.shape[0], weight_q.shape[0]
    rows = []
    for stride in (stride_q, stride_kv, stride_kv):
        t, h, w = pooled_grid(grid, stride)
        rows.append(1 + t * h * w)
    pooled = [qkv.new_empty(batch, n, heads, channels) for n in rows]
    stats = [qkv.new_empty(batch, n, heads, 2, dtype=accumulator(qkv.dtype)) for n in rows]
    return (*pooled, *stats)


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    qkv, *convolutions = args[3:7]
    norms = [weight for weight in args[7:10] for _ in ("weight", "bias")]
    return tuple(t.new_empty(t.shape) for t in (qkv, *convolutions, *norms))


OPERATOR = register(
    Operator(
        name="pool_tokens",
        schema="(Tensor qkv, Tensor weight_q, Tensor weight_k, Tensor weight_v, Tensor norm_weight_q,"
        " Tensor norm_bias_q, Tensor norm_weight_k, Tensor norm_bias_k, Tensor norm_weight_v,"
        " Tensor norm_bias_v, int[3] grid, int heads, int[3] stride_q, int[3] stride_kv, float eps)"
        " -> (Tensor query, Tensor key, Tensor value, Tensor stats_q, Tensor stats_k, Tensor stats_v)",
        reference=reference.pool_tokens,
        fake=_fake,
        check=_check_arguments,
        backward=Backward(
            schema="(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor qkv, Tensor weight_q,"
            " Tensor weight_k, Tensor weight_v, Tensor norm_weight_q, Tensor norm_weight_k,"
            " Tensor norm_weight_v, Tensor stats_q, Tensor stats_k, Tensor stats_v, int[3] grid, int heads,"
            " int[3] stride_q, int[3] stride_kv)"
            " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
            reference=reference.pool_tokens_backward,
            fake=_fake_backward,
            arguments=lambda inputs, outputs: (
                Gradient(0),
                Gradient(1),
                Gradient(2),
                *inputs[:5],
                inputs[6],
                inputs[8],
                *outputs[3:],
                *inputs[10:14],
            ),
            inputs=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        ),
        non_differentiable=(3, 4, 5),
        autocast=(0,),
    )
)


def pool_tokens(
    qkv: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_q: Norm,
    norm_k: Norm,
    norm_v: Norm,
    grid: Sequence[int],
    num_heads: int,
    stride_q: Sequence[int] = (1, 1, 1),
    stride_kv: Sequence[int] = (1, 1, 1),
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Depthwise 3x3x3 convolution (padding 1) and LayerNorm(d) of q, k and v, read from the token layout.

    For p in q, k, v, every head h and output cell o,

    .. math:: u_{oc} = \sum_{\delta \in \{-1,0,1\}^3} w^p_{c\delta}\, p_{s \cdot o + \delta,\,h,\,c}, \qquad
        y_{oc} = \frac{u_{oc} - \mathrm{mean}_c u_o}{\sqrt{\mathrm{var}_c u_o + \epsilon}}\,\gamma^p_c
        + \beta^p_c

    Cells outside the grid are zero. The class token (row 0) skips the convolution and passes the norm.
    The weights are shared by all heads.

    Args:
        qkv: (B, 1 + T*H*W, 3*h*d), packed (q | k | v, head, d), rows in (T, H, W) order behind the class
            token; float16, bfloat16, float32 or float64, any strides. Autocast casts it to its dtype.
        weight_q: (d, 1, 3, 3, 3), in qkv's dtype or float32 (float64 with float64), like every parameter.
        weight_k: (d, 1, 3, 3, 3).
        weight_v: (d, 1, 3, 3, 3).
        norm_q: (weight, bias) of q's LayerNorm, each (d,).
        norm_k: the same of k's.
        norm_v: the same of v's.
        grid: (T, H, W).
        num_heads: h.
        stride_q: (time, height, width) stride of q's convolution.
        stride_kv: the stride of k's and v's.
        eps: added to the variance.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        query (B, 1 + Nq, h, d), key and value (B, 1 + Nk, h, d) in qkv's dtype, with the grids
        ceil(size / stride); arithmetic in float32 (float64).

    Gradients flow to qkv and all parameters. Deterministic on the CPU; the reference on a GPU is as
    deterministic as PyTorch's convolution.

    Raises:
        ValueError: a shape, grid, stride or device that does not fit. TypeError: a dtype that does not.

    Source: Li et al., "MViTv2", CVPR 2022, arXiv:2112.01526 (pooling attention).
    """
    arguments = (
        qkv,
        weight_q,
        weight_k,
        weight_v,
        *norm_q,
        *norm_k,
        *norm_v,
        list(grid),
        num_heads,
        list(stride_q),
        list(stride_kv),
        eps,
    )
    _check_arguments(*arguments)
    query, key, value = run(OPERATOR, backend, *arguments)[:3]
    return query, key, value
