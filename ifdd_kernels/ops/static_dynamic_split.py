"""``static_dynamic_split``: ISSM in one op, from frames to the static and the dynamic group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels._serialised import serialisable
from ifdd_kernels.backends import composed, run
from ifdd_kernels.ops.split_frames import NORM_STAND_INS, Norm, check_norms, norm_arguments, split_frames
from ifdd_kernels.ops.split_index import check_arguments as check_index_arguments
from ifdd_kernels.ops.split_index import split_index
from ifdd_kernels.reference._common import accumulator

OP = "static_dynamic_split"


@serialisable
class StaticDynamicSplit(NamedTuple):
    """The result of :func:`static_dynamic_split`."""

    #: (B, T/2, N, C): the static group, normalised where norms are given.
    static: Tensor
    #: (B, T/2, N, C): the dynamic group.
    dynamic: Tensor
    #: (B, T/2): where in time the static group was sampled, unclamped.
    static_index: Tensor
    #: (B, T/2): the same for the dynamic group.
    dynamic_index: Tensor
    #: (B, T, T): the correlation both came from.
    correlation: Tensor


def _check_arguments(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    height: int,
    width: int,
    pool: int,
    eps: float,
) -> None:
    check_index_arguments(OP, x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool)
    norms = {
        "static_norm_weight": static_norm_weight,
        "static_norm_bias": static_norm_bias,
        "dynamic_norm_weight": dynamic_norm_weight,
        "dynamic_norm_bias": dynamic_norm_bias,
    }
    check_norms(OP, x, norms, eps)


def _fake(
    x: Tensor, token_weight: Tensor, static_norm_weight: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, frames, tokens, channels = x.shape
    dtype = accumulator(x.dtype)
    stats = (0,) if static_norm_weight is None else (batch, frames, tokens, 2)
    return (
        x.new_empty(batch, frames // 2, tokens, channels),
        x.new_empty(batch, frames // 2, tokens, channels),
        x.new_empty(batch, frames // 2, dtype=dtype),
        x.new_empty(batch, frames // 2, dtype=dtype),
        x.new_empty(batch, frames, frames, dtype=dtype),
        x.new_empty(2, batch, frames, token_weight.shape[0] * pool * pool, dtype=dtype),
        x.new_empty(stats, dtype=dtype),
    )


def _fake_backward(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    static_norm_weight: Tensor | None,
    dynamic_norm_weight: Tensor | None,
) -> tuple[Tensor, ...]:
    given = (x, token_weight, token_bias, static_weight, dynamic_weight)
    norms = (static_norm_weight, static_norm_weight, dynamic_norm_weight, dynamic_norm_weight)
    norm_grads = [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in norms]
    return *(t.new_empty(t.shape) for t in given), *norm_grads


OPERATOR = register(
    OP,
    "(Tensor x, Tensor token_weight, Tensor token_bias, Tensor static_weight,"
    " Tensor dynamic_weight, Tensor? static_norm_weight, Tensor? static_norm_bias,"
    " Tensor? dynamic_norm_weight, Tensor? dynamic_norm_bias, int height, int width, int pool,"
    " float reach, float eps, bool aligned) -> (Tensor static_frames, Tensor dynamic_frames,"
    " Tensor static_index, Tensor dynamic_index, Tensor correlation, Tensor tokens, Tensor stats)",
    reference=reference.static_dynamic_split,
    fake=_fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_static_frames, Tensor grad_dynamic_frames, Tensor grad_static_index,"
        " Tensor grad_dynamic_index, Tensor grad_correlation, Tensor x, Tensor token_weight,"
        " Tensor token_bias, Tensor static_weight, Tensor dynamic_weight, Tensor? static_norm_weight,"
        " Tensor? dynamic_norm_weight, Tensor static_index, Tensor dynamic_index, Tensor correlation,"
        " Tensor tokens, Tensor stats, int height, int width, int pool, float reach, bool aligned)"
        " -> (Tensor grad_x, Tensor grad_token_weight, Tensor grad_token_bias, Tensor grad_static_weight,"
        " Tensor grad_dynamic_weight, Tensor grad_static_norm_weight, Tensor grad_static_norm_bias,"
        " Tensor grad_dynamic_norm_weight, Tensor grad_dynamic_norm_bias)",
        reference=reference.static_dynamic_split_backward,
        fake=_fake_backward,
        missing=NORM_STAND_INS,
    ),
    non_differentiable=("tokens", "stats"),
    parameters=(
        "token_weight",
        "token_bias",
        "static_weight",
        "dynamic_weight",
        "static_norm_weight",
        "static_norm_bias",
        "dynamic_norm_weight",
        "dynamic_norm_bias",
    ),
    parts=("split_index", "split_frames"),
)


def static_dynamic_split(
    x: Tensor,
    grid: Sequence[int],
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    pool: int,
    static_norm: Norm | None = None,
    dynamic_norm: Norm | None = None,
    *,
    reach: float = 2.0,
    eps: float = 1e-5,
    aligned: bool = False,
    backend: str = "auto",
) -> StaticDynamicSplit:
    r"""Inter-frame static-dynamic splitting (ISSM): :func:`split_index`, then :func:`split_frames` there.

    On the CPU one kernel call that takes a clip through both while it is in the cache, and one backward
    that adds the gradient of x up as it goes. Elsewhere, under autocast (which lowers what is sampled, but
    not what the indexes are computed from) and with ``backend="triton"`` it calls the two functions.

    Args:
        x: frames (B, T, N, C), T even, N = H * W; float16, bfloat16, float32 or float64, any strides.
        grid: (H, W).
        token_weight: (S, C), in x's dtype or float32 (float64 with float64), like every parameter.
        token_bias: (S,).
        static_weight: offsets of the static group, (T/2, T*T).
        dynamic_weight: offsets of the dynamic group, (T/2, T*T).
        pool: side of the pooled grid of the tokens.
        static_norm: (weight, bias), each (C,), of the static group's LayerNorm.
        dynamic_norm: the same for the dynamic group. Both norms or none.
        reach: how many frames a position may move either way.
        eps: added to the variance.
        aligned: how positions are sampled, see :func:`split_frames`.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        :class:`StaticDynamicSplit`: groups in x's dtype, indexes (in frames) and correlation in float32
        (float64 for float64 x).

    Gradients flow from all five outputs to x and to all parameters. Deterministic.

    Raises:
        ValueError: a shape, odd T, grid, device or set of norms that does not fit.
        TypeError: a dtype that
        does not.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (ISSM, LADM).
    """
    height, width = _check.pair(OP, "grid", grid)
    parameters = (token_weight, token_bias, static_weight, dynamic_weight)
    if not isinstance(x, Tensor):
        _check.tensor(OP, "x", x)  # type: ignore[unreachable]
    if composed(OPERATOR, x.device.type, backend):
        found = split_index(x, (height, width), *parameters, pool, reach=reach, backend=backend)
        positions = (found.static_index, found.dynamic_index)
        static, dynamic = split_frames(
            x, *positions, static_norm, dynamic_norm, eps=eps, aligned=aligned, backend=backend
        )
        return StaticDynamicSplit(static, dynamic, *found)
    arguments = (
        x,
        *parameters,
        *norm_arguments(OP, static_norm, dynamic_norm),
        height,
        width,
        pool,
        reach,
        eps,
        aligned,
    )
    return StaticDynamicSplit(*run(OPERATOR, backend, *arguments)[:5])
