"""``lifting_attention``: cross attention with a value residual, the core of both lifting steps."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(query: Tensor, key: Tensor, value: Tensor) -> None:
    op = "lifting_attention"
    _check.shape(op, "query", query, ("B", "M", "h", "d"))
    _check.floating(op, "query", query)
    _check.channels(op, "query", query)
    for name, part in (("key", key), ("value", value)):
        # The value residual pairs token i of the values with query i, so the counts are equal.
        _check.shape(op, name, part, query.shape)
        _check.same(op, name, part, "query", query)


def _fake(query: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, channels = query.shape
    return (
        query.new_empty(batch, tokens, heads * channels),
        query.new_empty(batch, heads, tokens, dtype=accumulator(query.dtype)),
    )


def _fake_backward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in (query, key, value))


def _cuda_limit(query: Tensor | None) -> str:
    batch, tokens, heads, channels = _cuda_limits.sizes(query, 4)
    return _cuda_limits.most("head_dim", _cuda_limits.HEAD_DIM, channels) or _cuda_limits.rows(
        batch * tokens * heads
    )


OPERATOR = register(
    "lifting_attention",
    "(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor out, Tensor log_sum)",
    reference=reference.lifting_attention,
    fake=_fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, Tensor log_sum,"
        " float scale) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
        reference=reference.lifting_attention_backward,
        fake=_fake_backward,
    ),
    non_differentiable=("log_sum",),
    autocast=("query", "key", "value"),
    cuda_limit=_cuda_limit,
    backends={"triton": twin("lifting_attention")},
)


def lifting_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    r"""Attention whose values also reach their own position.

    .. math:: A = \mathrm{softmax}(s\,q k^\top)\,v + v

    Args:
        query: (B, M, h, d); float16, bfloat16, float32 or float64, any strides. Under autocast all three
            are cast to its dtype.
        key: (B, M, h, d).
        value: (B, M, h, d); its token i is added to the output of query i.
        scale: s; d^-1/2 if not given.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, M, h*d) in the dtype of the inputs; scores and sums in float32 (float64).

    Gradients flow to query, key and value; the probabilities are recomputed in backward. Deterministic.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (LADM).
    """
    if scale is None:
        scale = _check.default_scale("lifting_attention", query)
    out: Tensor = run(OPERATOR, backend, query, key, value, scale)[0]
    return out
