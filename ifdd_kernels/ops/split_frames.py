"""``split_frames``: samples the static and the dynamic group along time, split norms fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin

Norm = tuple[Tensor, Tensor]
#: For the checks of a backward op, which is not given the biases.
NORM_STAND_INS: dict[str, Callable[..., Any]] = {
    "static_norm_bias": lambda static_norm_weight: static_norm_weight,
    "dynamic_norm_bias": lambda dynamic_norm_weight: dynamic_norm_weight,
    "eps": lambda: 1.0,
}


def _check_index(x: Tensor, name: str, index: Tensor) -> None:
    _check.shape("split_frames", name, index, (x.shape[0], "K"))
    _check.device("split_frames", name, index, "x", x)
    if index.shape[1] < 1:
        raise ValueError(f"split_frames: {name} must hold at least one position per clip, got none")
    accepted = (torch.int64, accumulator(x.dtype))
    if index.dtype not in accepted:
        raise TypeError(
            f"split_frames: {name} must be torch.int64 or {accepted[1]} with x of {x.dtype},"
            f" got {index.dtype}"
        )


def check_norms(op: str, x: Tensor, norms: dict[str, Tensor | None], eps: float) -> None:
    """Raises on parameters of the two norms that do not fit x, or that are not all there or all missing."""
    missing = [name for name, value in norms.items() if value is None]
    if missing and len(missing) < len(norms):
        raise ValueError(f"{op}: give all four norm parameters or none; missing: {', '.join(missing)}")
    for name, value in norms.items():
        if value is not None:
            _check.parameter(op, name, value, (x.shape[3],), "x", x)
    if not missing:
        _check.positive(op, eps=eps)


def norm_arguments(op: str, static_norm: Norm | None, dynamic_norm: Norm | None) -> tuple[Tensor | None, ...]:
    """Weight and bias of both norms, in the order of the schemas."""
    if (static_norm is None) != (dynamic_norm is None):
        missing = "static_norm" if static_norm is None else "dynamic_norm"
        raise ValueError(f"{op}: give both norms or none; missing: {missing}")
    if static_norm is not None:
        _check.norms(op, static_norm=static_norm, dynamic_norm=dynamic_norm)
    return *(static_norm or (None, None)), *(dynamic_norm or (None, None))


def _check_arguments(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    eps: float,
) -> None:
    op = "split_frames"
    _check.shape(op, "x", x, ("B", "T", "N", "C"))
    _check.floating(op, "x", x)
    _check_index(x, "static_index", static_index)
    _check_index(x, "dynamic_index", dynamic_index)
    if static_index.dtype != dynamic_index.dtype:
        raise TypeError(
            f"{op}: dynamic_index must have the dtype of static_index, {static_index.dtype},"
            f" got {dynamic_index.dtype}"
        )
    least = 2 if static_index.is_floating_point() else 1
    if x.shape[1] < least:
        raise ValueError(f"{op}: x must have at least {least} frames, got {x.shape[1]}")
    norms = {
        "static_norm_weight": static_norm_weight,
        "static_norm_bias": static_norm_bias,
        "dynamic_norm_weight": dynamic_norm_weight,
        "dynamic_norm_bias": dynamic_norm_bias,
    }
    check_norms(op, x, norms, eps)
    _check.channels(op, "x", x)
    counts = static_index.shape[1] + dynamic_index.shape[1]
    _check.extent(op, "dynamic_index", (x.shape[0], counts, *x.shape[2:]))


def _fake(
    x: Tensor, static_index: Tensor, dynamic_index: Tensor, static_norm_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, tokens, channels = x.shape
    count_s, count_d = static_index.shape[1], dynamic_index.shape[1]
    stats = (0,) if static_norm_weight is None else (batch, count_s + count_d, tokens, 2)
    return (
        x.new_empty(batch, count_s, tokens, channels),
        x.new_empty(batch, count_d, tokens, channels),
        x.new_empty(stats, dtype=accumulator(x.dtype)),
    )


def _fake_backward(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    dynamic_norm_weight: Tensor | None,
) -> tuple[Tensor, ...]:
    floating = static_index.is_floating_point()
    indexes = [
        index.new_empty(index.shape) if floating else x.new_empty(0, dtype=accumulator(x.dtype))
        for index in (static_index, dynamic_index)
    ]
    norms = [
        x.new_empty(0) if weight is None else weight.new_empty(weight.shape)
        for weight in (static_norm_weight, static_norm_weight, dynamic_norm_weight, dynamic_norm_weight)
    ]
    return x.new_empty(x.shape), *indexes, *norms


def _cuda_limit(x: Tensor | None, static_index: Tensor | None, dynamic_index: Tensor | None) -> str:
    batch, frames, tokens, _ = _cuda_limits.sizes(x, 4)
    outputs = sum(_cuda_limits.sizes(index, 2)[1] for index in (static_index, dynamic_index))
    return _cuda_limits.most(
        "indexes in both groups", _cuda_limits.SAMPLED_FRAMES, outputs
    ) or _cuda_limits.rows(batch * frames * tokens)


OPERATOR = register(
    "split_frames",
    "(Tensor x, Tensor static_index, Tensor dynamic_index, Tensor? static_norm_weight,"
    " Tensor? static_norm_bias, Tensor? dynamic_norm_weight, Tensor? dynamic_norm_bias, float eps,"
    " bool aligned)"
    " -> (Tensor static_frames, Tensor dynamic_frames, Tensor stats)",
    reference=reference.split_frames,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("split_frames")},
    cuda_limit=_cuda_limit,
    backward=Backward(
        schema="(Tensor grad_static_frames, Tensor grad_dynamic_frames, Tensor x, Tensor static_index,"
        " Tensor dynamic_index, Tensor? static_norm_weight, Tensor? dynamic_norm_weight, Tensor stats,"
        " bool aligned) -> (Tensor grad_x, Tensor grad_static_index, Tensor grad_dynamic_index,"
        " Tensor grad_static_norm_weight, Tensor grad_static_norm_bias, Tensor grad_dynamic_norm_weight,"
        " Tensor grad_dynamic_norm_bias)",
        reference=reference.split_frames_backward,
        fake=_fake_backward,
        missing=NORM_STAND_INS,
    ),
    non_differentiable=("stats",),
    autocast=("x",),
    parameters=("static_norm_weight", "static_norm_bias", "dynamic_norm_weight", "dynamic_norm_bias"),
)


def split_frames(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm: Norm | None = None,
    dynamic_norm: Norm | None = None,
    *,
    eps: float = 1e-5,
    aligned: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Samples two groups of frames along time, each optionally followed by its LayerNorm over C.

    A floating index i is a position, interpolated linearly; all channels and tokens share it:

    .. math::
        p = \mathrm{clamp}(i\,T/(T-1) - 1/2,\ 0,\ T-1), \quad f = p - \lfloor p \rfloor, \quad
        y = (1-f)\,x_{\lfloor p \rfloor} + f\,x_{\min(\lfloor p \rfloor + 1,\,T-1)}

    (IFDD normalises positions as if the corners were aligned and samples as if they were not;
    ``aligned=True`` samples at p = clamp(i, 0, T-1) instead.) An integer index gathers whole frames.

    Args:
        x: frames (B, T, N, C); float16, bfloat16, float32 or float64, any strides. T >= 2 with floating
            indexes.
        static_index: (B, Ks), int64 in 0..T-1, or float32 in frames (float64 with float64 x).
        dynamic_index: (B, Kd), of the same dtype.
        static_norm: (weight, bias), each (C,), of the static group's LayerNorm; in x's dtype or float32
            (float64 with float64).
        dynamic_norm: the same for the dynamic group. Both norms or none.
        eps: added to the variance.
        aligned: see above.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        static (B, Ks, N, C) and dynamic (B, Kd, N, C) in x's dtype; arithmetic in float32 (float64).

    Gradients flow to x, to floating indexes (zero where p is clamped) and to the norms. Deterministic.

    Raises:
        ValueError: a shape, device or set of norms that does not fit.
        TypeError: a dtype that does not.
        RuntimeError, IndexError: an integer index outside 0..T-1 (on the CPU).

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (ISSM, LADM).
    """
    norms = norm_arguments("split_frames", static_norm, dynamic_norm)
    arguments = (x, static_index, dynamic_index, *norms, eps, aligned)
    static, dynamic, _ = run(OPERATOR, backend, *arguments)
    return static, dynamic
