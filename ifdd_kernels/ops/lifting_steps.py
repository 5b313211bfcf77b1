"""``lifting_update`` and ``lifting_predict``: whole lifting steps, projections included.

Both are compositions of library matrix products and :func:`lifting_attention`. They are registered as ops
that decompose, so ``torch.ops.ifdd.lifting_update`` works and compilers and export see through it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels import _check, backends
from ifdd_kernels._guard import guard
from ifdd_kernels._operator import LIBRARY
from ifdd_kernels._schema import Signature
from ifdd_kernels.ops.lifting_attention import lifting_attention
from ifdd_kernels.ops.linear import linear, product_dtype

STEPS = ("lifting_update", "lifting_predict")
STEP_SCHEMA = (
    "(Tensor target, Tensor source, Tensor query_weight, Tensor query_bias, Tensor key_value_weight,"
    " Tensor key_value_bias, Tensor output_weight, Tensor output_bias, int num_heads,"
    " bool self_conditioned) -> Tensor out"
)


def _check_arguments(
    op: str, target: Tensor, source: Tensor, parameters: dict[str, Tensor], num_heads: int
) -> None:
    for name, value in (("target", target), ("source", source), *parameters.items()):
        if not isinstance(value, Tensor) or value.is_nested or value.layout != torch.strided:
            _check.tensor(op, name, value)
    _check.shape(op, "target", target, ("B", "M", "C"))
    _check.floating(op, "target", target)
    _check.shape(op, "source", source, target.shape)
    _check.device(op, "source", source, "target", target)
    lowered = product_dtype(target) != target.dtype
    if not lowered:
        _check.same(op, "source", source, "target", target)
    channels = target.shape[2]
    _check.positive(op, num_heads=num_heads)
    if channels % num_heads:
        raise ValueError(f"{op}: C = {channels} is not divisible by num_heads = {num_heads}")
    for name, value in parameters.items():
        rows = 2 * channels if name.startswith("key_value") else channels
        expected = (rows, channels) if name.endswith("weight") else (rows,)
        if lowered or value.dtype == target.dtype:
            _check.shape(op, name, value, expected)
            _check.floating(op, name, value)
            _check.device(op, name, value, "target", target)
        else:
            _check.parameter(op, name, value, expected, "target", target)
        if name.endswith("bias") and not lowered:
            weight = name.replace("bias", "weight")
            _check.same(op, name, value, weight, parameters[weight])


def _step(
    op: str,
    target: Tensor,
    source: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_value_weight: Tensor,
    key_value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    num_heads: int,
    self_conditioned: bool,
    backend: str = "auto",
) -> Tensor:
    parameters = {
        "query_weight": query_weight,
        "query_bias": query_bias,
        "key_value_weight": key_value_weight,
        "key_value_bias": key_value_bias,
        "output_weight": output_weight,
        "output_bias": output_bias,
    }
    if type(num_heads) is not int:
        _check.number(op, "num_heads", "int", num_heads)
    if type(self_conditioned) is not bool:
        _check.number(op, "self_conditioned", "bool", self_conditioned)  # type: ignore[unreachable]
    _check_arguments(op, target, source, parameters, num_heads)
    batch, tokens, channels = target.shape
    heads = (num_heads, channels // num_heads)
    query = linear(source if self_conditioned else target, query_weight, query_bias)
    key_value = linear(source, key_value_weight, key_value_bias)
    key, value = key_value.reshape(batch, tokens, 2, *heads).unbind(2)
    aggregated = lifting_attention(query.reshape(batch, tokens, *heads), key, value, backend=backend)
    detail = linear(aggregated, output_weight, output_bias)
    return target + detail if op == "lifting_update" else target - detail


def _register(op: str) -> None:
    def decomposition(*args: object) -> Tensor:
        return _step(op, *args)  # type: ignore[arg-type]

    LIBRARY.define(op + STEP_SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
    guard(op, STEP_SCHEMA)
    backends.STEPS[op] = Signature.of(op, STEP_SCHEMA).arguments
    LIBRARY.impl(op, decomposition, "CompositeImplicitAutograd")


for _op in STEPS:
    _register(_op)


def lifting_update(
    static: Tensor,
    dynamic: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_value_weight: Tensor,
    key_value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    num_heads: int,
    *,
    self_conditioned: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""The update step: the static group takes up global context from the dynamic one.

    .. math:: Y_s = X_s + A(q = X_s,\ kv = X_d), \qquad
        A(q, kv) = W_o\,(\mathrm{softmax}(Q K^\top / \sqrt d)\,V + V) + b_o

    with Q = W_q q + b_q and (K | V) = W_kv kv + b_kv, both packed (key | value, head, d).

    Args:
        static: X_s, (B, M, C), M = K*N tokens of all its frames; any strides.
        dynamic: X_d, (B, M, C).
        query_weight: W_q, (C, C).
        query_bias: (C,).
        key_value_weight: W_kv, (2C, C).
        key_value_bias: (2C,).
        output_weight: W_o, (C, C).
        output_bias: (C,).
        num_heads: h; C = h * d.
        self_conditioned: take the query from X_d as well.
        backend: of :func:`lifting_attention`; see :mod:`ifdd_kernels.backends`.

    Returns:
        Y_s, (B, M, C).

    One dtype for all tensors (float16, bfloat16, float32 or float64), or autocast. Gradients flow to all of
    them.

    Raises:
        ValueError: a shape, head count or device that does not fit.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (LADM).
    """
    return _step(
        "lifting_update",
        static,
        dynamic,
        query_weight,
        query_bias,
        key_value_weight,
        key_value_bias,
        output_weight,
        output_bias,
        num_heads,
        self_conditioned,
        backend,
    )


def lifting_predict(
    dynamic: Tensor,
    static: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_value_weight: Tensor,
    key_value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    num_heads: int,
    *,
    self_conditioned: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""The predict step: what the static group foretells is subtracted from the dynamic one.

    .. math:: Y_d = X_d - A(q = X_d,\ kv = Y_s)

    with A, the parameters, dtypes and gradients of :func:`lifting_update`.

    Args:
        dynamic: X_d, (B, M, C).
        static: Y_s (update first) or X_s (predict first), (B, M, C).
        query_weight: (C, C).
        query_bias: (C,).
        key_value_weight: (2C, C).
        key_value_bias: (2C,).
        output_weight: (C, C).
        output_bias: (C,).
        num_heads: h; C = h * d.
        self_conditioned: take the query from the static group as well.
        backend: of :func:`lifting_attention`; see :mod:`ifdd_kernels.backends`.

    Returns:
        Y_d, (B, M, C).

    Raises:
        ValueError: a shape, head count or device that does not fit.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (LADM).
    """
    return _step(
        "lifting_predict",
        dynamic,
        static,
        query_weight,
        query_bias,
        key_value_weight,
        key_value_bias,
        output_weight,
        output_bias,
        num_heads,
        self_conditioned,
        backend,
    )
