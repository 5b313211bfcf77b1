"""``pool_tokens``: pooling of queries, keys and values in an MViTv2 block, in token layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.grids import pooled_grid
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin

Norm = tuple[Tensor, Tensor]


def _check_packed(
    op: str, name: str, value: Tensor, parts: int, grid_name: str, grid: Sequence[int], heads: int
) -> int:
    """Checks (B, 1 + T*H*W, parts*h*d); returns d."""
    _check.shape(op, name, value, ("B", "1+T*H*W", f"{parts}*h*d" if parts > 1 else "h*d"))
    cells = math.prod(grid)
    if value.shape[1] != 1 + cells:
        raise ValueError(
            f"{op}: {name} must have 1 + {cells} tokens for {grid_name} {tuple(grid)}, got {value.shape[1]}"
        )
    if value.shape[2] % (parts * heads) or value.shape[2] == 0:
        multiple = f"{parts} * heads" if parts > 1 else "heads"
        raise ValueError(
            f"{op}: {name}'s last axis must be a positive multiple of {multiple} = {parts * heads},"
            f" got {value.shape[2]}"
        )
    return value.shape[2] // (parts * heads)


def _check_arguments(
    qkv: Tensor,
    key_value: Tensor | None,
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
    key_value_grid: Sequence[int],
    heads: int,
    stride_q: Sequence[int],
    stride_kv: Sequence[int],
    eps: float,
) -> None:
    op = "pool_tokens"
    _check.triple(op, "grid", grid)
    _check.triple(op, "key_value_grid", key_value_grid)
    _check.triple(op, "stride_q", stride_q)
    _check.triple(op, "stride_kv", stride_kv)
    _check.positive(op, heads=heads, eps=eps)
    channels = _check_packed(op, "qkv", qkv, 1 if key_value is not None else 3, "grid", grid, heads)
    _check.floating(op, "qkv", qkv)
    if key_value is not None:
        _check_packed(op, "key_value", key_value, 2, "key_value_grid", key_value_grid, heads)
        batch, rows = qkv.shape[0], 1 + math.prod(key_value_grid)
        _check.shape(op, "key_value", key_value, (batch, rows, 2 * heads * channels))
        _check.same(op, "key_value", key_value, "qkv", qkv)
    elif list(key_value_grid) != list(grid):
        raise ValueError(
            f"{op}: key_value_grid must equal grid {tuple(grid)} where key_value is not given,"
            f" got {tuple(key_value_grid)}"
        )
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


def _fake(
    qkv: Tensor,
    weight_q: Tensor,
    grid: Sequence[int],
    key_value_grid: Sequence[int],
    heads: int,
    stride_q: Sequence[int],
    stride_kv: Sequence[int],
) -> tuple[Tensor, ...]:
    batch, channels = qkv.shape[0], weight_q.shape[0]
    of_key_value = 1 + math.prod(pooled_grid(key_value_grid, stride_kv))
    rows = (1 + math.prod(pooled_grid(grid, stride_q)), of_key_value, of_key_value)
    pooled = [qkv.new_empty(batch, n, heads, channels) for n in rows]
    stats = [qkv.new_empty(batch, n, heads, 2, dtype=accumulator(qkv.dtype)) for n in rows]
    return (*pooled, *stats)


def _fake_backward(
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_weight_k: Tensor,
    norm_weight_v: Tensor,
) -> tuple[Tensor, ...]:
    grad_key_value = qkv.new_empty(0) if key_value is None else key_value.new_empty(key_value.shape)
    norms = [t for t in (norm_weight_q, norm_weight_k, norm_weight_v) for _ in ("weight", "bias")]
    parameters = (t.new_empty(t.shape) for t in (weight_q, weight_k, weight_v, *norms))
    return qkv.new_empty(qkv.shape), grad_key_value, *parameters


def _cuda_limit(
    qkv: Tensor | None,
    key_value: Tensor | None,
    weight_q: Tensor | None,
    grid: Sequence[int] | None,
    key_value_grid: Sequence[int] | None,
) -> str:
    head_dim = _cuda_limits.sizes(weight_q, 5)[0]
    longest = _cuda_limits.longest(grid, key_value_grid)
    # Rows of one head are counted, and without the weight it is open how wide a head is.
    parts = (qkv, key_value) if head_dim else ()
    channels = sum(math.prod(_cuda_limits.sizes(part, 3)) for part in parts)
    return (
        _cuda_limits.most("head_dim", _cuda_limits.HEAD_DIM, head_dim)
        or _cuda_limits.most("sides of a grid", _cuda_limits.POOLED_SIDE, longest)
        or _cuda_limits.rows(channels // max(1, head_dim))
    )


OPERATOR = register(
    "pool_tokens",
    "(Tensor qkv, Tensor? key_value, Tensor weight_q, Tensor weight_k, Tensor weight_v,"
    " Tensor norm_weight_q, Tensor norm_bias_q, Tensor norm_weight_k, Tensor norm_bias_k,"
    " Tensor norm_weight_v, Tensor norm_bias_v, int[3] grid, int[3] key_value_grid, int heads,"
    " int[3] stride_q, int[3] stride_kv, float eps)"
    " -> (Tensor query, Tensor key, Tensor value, Tensor stats_q, Tensor stats_k, Tensor stats_v)",
    reference=reference.pool_tokens,
    fake=_fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor qkv, Tensor? key_value,"
        " Tensor weight_q, Tensor weight_k, Tensor weight_v, Tensor norm_weight_q, Tensor norm_weight_k,"
        " Tensor norm_weight_v, Tensor stats_q, Tensor stats_k, Tensor stats_v, int[3] grid,"
        " int[3] key_value_grid, int heads, int[3] stride_q, int[3] stride_kv)"
        " -> (Tensor grad_qkv, Tensor grad_key_value, Tensor grad_weight_q, Tensor grad_weight_k,"
        " Tensor grad_weight_v, Tensor grad_norm_weight_q, Tensor grad_norm_bias_q,"
        " Tensor grad_norm_weight_k, Tensor grad_norm_bias_k, Tensor grad_norm_weight_v,"
        " Tensor grad_norm_bias_v)",
        reference=reference.pool_tokens_backward,
        fake=_fake_backward,
        missing={
            "norm_bias_q": lambda norm_weight_q: norm_weight_q,
            "norm_bias_k": lambda norm_weight_k: norm_weight_k,
            "norm_bias_v": lambda norm_weight_v: norm_weight_v,
            "eps": lambda: 1.0,
        },
    ),
    non_differentiable=("stats_q", "stats_k", "stats_v"),
    autocast=("qkv", "key_value"),
    parameters=(
        "weight_q",
        "weight_k",
        "weight_v",
        "norm_weight_q",
        "norm_bias_q",
        "norm_weight_k",
        "norm_bias_k",
        "norm_weight_v",
        "norm_bias_v",
    ),
    cuda_limit=_cuda_limit,
    backends={"triton": twin("pool_tokens", traced=False)},
)


def pool_tokens(
    qkv: Tensor,
    weight_q: Tensor | None,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_q: Norm | None,
    norm_k: Norm,
    norm_v: Norm,
    grid: Sequence[int],
    num_heads: int,
    stride_q: Sequence[int] = (1, 1, 1),
    stride_kv: Sequence[int] = (1, 1, 1),
    *,
    key_value: Tensor | None = None,
    key_value_grid: Sequence[int] | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Depthwise 3x3x3 convolution (padding 1) and LayerNorm(d) of q, k and v, read from the token layout.

    For p in q, k, v, every head h and output cell o,

    .. math:: u_{oc} = \sum_{\delta \in \{-1,0,1\}^3} w^p_{c\delta}\, p_{s \cdot o + \delta,\,h,\,c}, \qquad
        y_{oc} = \frac{u_{oc} - \mathrm{mean}_c u_o}{\sqrt{\mathrm{var}_c u_o + \epsilon}}\,\gamma^p_c
        + \beta^p_c

    Cells outside the grid are zero. The class token (row 0) skips the convolution and passes the norm.
    The weights are shared by all heads. With strides of 4 and more, many keys and values lie in no
    window; :func:`live_tokens` returns which do, and `key_value` takes only those.

    Args:
        qkv: (B, 1 + T*H*W, 3*h*d), packed (q | k | v, head, d), rows in (T, H, W) order behind the class
            token; float16, bfloat16, float32 or float64, any strides. Autocast casts it to its dtype.
            With `key_value`, the queries alone: (B, 1 + T*H*W, h*d).
        weight_q: (d, 1, 3, 3, 3), in qkv's dtype or float32 (float64 with float64), like every parameter.
            None, with `norm_q`: queries are neither pooled nor normalised.
        weight_k: (d, 1, 3, 3, 3).
        weight_v: (d, 1, 3, 3, 3).
        norm_q: (weight, bias) of q's LayerNorm, each (d,).
        norm_k: the same of k's.
        norm_v: the same of v's.
        grid: (T, H, W).
        num_heads: h.
        stride_q: (time, height, width) stride of q's convolution.
        stride_kv: the stride of k's and v's, on their own grid.
        key_value: keys and values on a grid of their own, (B, 1 + Tk*Hk*Wk, 2*h*d), packed (k | v, head, d),
            in qkv's dtype; cast by autocast like qkv.
        key_value_grid: (Tk, Hk, Wk); `grid` where it is not given.
        eps: added to the variance.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        query (B, 1 + Nq, h, d), key and value (B, 1 + Nk, h, d) in qkv's dtype, with the grids
        ceil(size / stride); arithmetic in float32 (float64). Without `weight_q` query is a view of qkv.

    Gradients flow to qkv, key_value and all parameters. Deterministic on the CPU; the reference on a GPU is
    as deterministic as PyTorch's convolution.

    Raises:
        ValueError: a shape, grid, stride or device that does not fit.
        TypeError: a dtype that does not.

    Source: Li et al., "MViTv2", CVPR 2022, arXiv:2112.01526 (pooling attention).
    """
    op = "pool_tokens"
    if weight_q is None and norm_q is None:
        return _without_query(
            qkv,
            key_value,
            (weight_k, weight_v, norm_k, norm_v),
            (grid, key_value_grid, num_heads, stride_q, stride_kv),
            eps,
            backend,
        )
    _check.norms(op, norm_q=norm_q, norm_k=norm_k, norm_v=norm_v)
    assert norm_q is not None
    if type(num_heads) is not int:
        _check.number(op, "num_heads", "int", num_heads)
    grid = _check.triple(op, "grid", grid)
    arguments = (
        qkv,
        key_value,
        weight_q,
        weight_k,
        weight_v,
        *norm_q,
        *norm_k,
        *norm_v,
        grid,
        grid if key_value_grid is None else _check.triple(op, "key_value_grid", key_value_grid),
        num_heads,
        _check.triple(op, "stride_q", stride_q),
        _check.triple(op, "stride_kv", stride_kv),
        eps,
    )
    query, key, value = run(OPERATOR, backend, *arguments)[:3]
    return query, key, value


def _without_query(
    qkv: Tensor,
    key_value: Tensor | None,
    parameters: tuple[Tensor, Tensor, Norm, Norm],
    sizes: tuple[Sequence[int], Sequence[int] | None, int, Sequence[int], Sequence[int]],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Only keys and values: the op pools one query of zeros beside them, which nobody sees."""
    op = OPERATOR.name
    weight_k, weight_v, norm_k, norm_v = parameters
    _check.norms(op, norm_k=norm_k, norm_v=norm_v)
    grid, key_value_grid, heads, stride_q, stride_kv = sizes
    grid = _check.triple(op, "grid", grid)
    _check.number(op, "num_heads", "int", heads)
    _check.positive(op, heads=heads)
    if list(_check.triple(op, "stride_q", stride_q)) != [1, 1, 1]:
        raise ValueError(f"{op}: stride_q must be (1, 1, 1) where weight_q is None, got {tuple(stride_q)}")
    _check.tensor(op, "qkv", qkv)
    channels = _check_packed(op, "qkv", qkv, 1 if key_value is not None else 3, "grid", grid, heads)
    for name, weight in (("weight_k", weight_k), ("weight_v", weight_v)):
        _check.tensor(op, name, weight)
        _check.parameter(op, name, weight, (channels, 1, 3, 3, 3), "qkv", qkv)
    for name, norm in (("norm_k", norm_k), ("norm_v", norm_v)):
        for part, value in zip(("weight", "bias"), norm, strict=True):
            _check.tensor(op, f"{name}'s {part}", value)
            _check.parameter(op, f"{name}'s {part}", value, (channels,), "qkv", qkv)
    query = qkv
    if key_value is None:
        if key_value_grid is not None and list(key_value_grid) != list(grid):
            raise ValueError(
                f"{op}: key_value_grid must equal grid {tuple(grid)} where key_value is not given,"
                f" got {tuple(key_value_grid)}"
            )
        query, key_value = qkv.split((heads * channels, 2 * heads * channels), -1)
    stand_in = qkv.new_zeros(qkv.shape[0], 2, heads * channels)
    _, key, value = pool_tokens(
        stand_in,
        weight_k.detach(),
        weight_k,
        weight_v,
        (norm_k[0].detach(), norm_k[1].detach()),
        norm_k,
        norm_v,
        (1, 1, 1),
        heads,
        (1, 1, 1),
        stride_kv,
        key_value=key_value,
        key_value_grid=grid if key_value_grid is None else key_value_grid,
        eps=eps,
        backend=backend,
    )
    # Autocast has cast keys and values.
    return query.unflatten(-1, (heads, channels)).to(key.dtype), key, value
