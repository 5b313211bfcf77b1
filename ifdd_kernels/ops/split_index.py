"""``split_index``: from frames to the positions in time of the static and the dynamic group."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels._serialised import serialisable
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


@serialisable
class SplitIndex(NamedTuple):
    """The result of :func:`split_index`."""

    #: (B, T/2): frame positions of the static group, unclamped.
    static_index: Tensor
    #: (B, T/2): frame positions of the dynamic group, unclamped.
    dynamic_index: Tensor
    #: (B, T, T): the correlation both came from.
    correlation: Tensor


def check_arguments(
    op: str,
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    height: int,
    width: int,
    pool: int,
) -> None:
    """Raises on arguments that ``split_index``, or an op that begins with it, cannot take."""
    _check.grid(op, x, height, width, pool)
    _check.even_frames(op, x)
    frames = x.shape[1]
    _check.tokenizer(op, x, "token_weight", token_weight, "token_bias", token_bias, pool)
    _check.parameter(op, "static_weight", static_weight, (frames // 2, frames * frames), "x", x)
    _check.parameter(op, "dynamic_weight", dynamic_weight, (frames // 2, frames * frames), "x", x)


def _fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, frames = x.shape[:2]
    dtype = accumulator(x.dtype)
    return (
        x.new_empty(batch, frames // 2, dtype=dtype),
        x.new_empty(batch, frames // 2, dtype=dtype),
        x.new_empty(batch, frames, frames, dtype=dtype),
    )


def _fake_backward(
    x: Tensor, token_weight: Tensor, token_bias: Tensor, static_weight: Tensor, dynamic_weight: Tensor
) -> tuple[Tensor, ...]:
    given = (x, token_weight, token_bias, static_weight, dynamic_weight)
    return tuple(t.new_empty(t.shape) for t in given)


def _cuda_limit(
    x: Tensor | None, token_weight: Tensor | None, height: int | None, width: int | None, pool: int | None
) -> str:
    return _cuda_limits.tokenizer(x, token_weight, height, width, pool)


OPERATOR = register(
    "split_index",
    "(Tensor x, Tensor token_weight, Tensor token_bias, Tensor static_weight,"
    " Tensor dynamic_weight, int height, int width, int pool, float reach)"
    " -> (Tensor static_index, Tensor dynamic_index, Tensor correlation)",
    reference=reference.split_index,
    fake=_fake,
    check=functools.partial(check_arguments, "split_index"),
    backends={"triton": twin("split_index")},
    cuda_limit=_cuda_limit,
    parameters=("token_weight", "token_bias", "static_weight", "dynamic_weight"),
    backward=Backward(
        schema="(Tensor grad_static_index, Tensor grad_dynamic_index, Tensor grad_correlation, Tensor x,"
        " Tensor token_weight, Tensor token_bias, Tensor static_weight, Tensor dynamic_weight,"
        " Tensor correlation, int height, int width, int pool, float reach)"
        " -> (Tensor grad_x, Tensor grad_token_weight, Tensor grad_token_bias,"
        " Tensor grad_static_weight, Tensor grad_dynamic_weight)",
        reference=reference.split_index_backward,
        fake=_fake_backward,
    ),
)


def split_index(
    x: Tensor,
    grid: Sequence[int],
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    pool: int,
    *,
    reach: float = 2.0,
    backend: str = "auto",
) -> SplitIndex:
    r"""Positions in time at which the static and the dynamic group of frames are sampled.

    With the tokens z of :func:`frame_tokens` and M = z z^T / C,

    .. math::
        i_s = (0, 2, \dots) + r \tanh(W_s\,\mathrm{vec}\,\mathrm{softmax}(M)), \quad
        i_d = (1, 3, \dots) + r \tanh(W_d\,\mathrm{vec}\,\mathrm{softmax}(-M)),

    the softmax over the last axis and vec row-major: frames alike attract the static positions, frames
    unlike the dynamic ones.

    Args:
        x: frames (B, T, N, C), T even, N = H * W; float16, bfloat16, float32 or float64, any strides.
        grid: (H, W).
        token_weight: (S, C), in x's dtype or float32 (float64 with float64), like every parameter.
        token_bias: (S,).
        static_weight: W_s, (T/2, T*T).
        dynamic_weight: W_d, (T/2, T*T).
        pool: side of the pooled grid of the tokens.
        reach: r, how many frames a position may move either way.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        :class:`SplitIndex`, all float32 (float64 for float64 x), under autocast too. The indexes are in
        frames and not clamped; :func:`split_frames` clamps where it samples.

    Gradients flow from all three outputs to x and the four parameters. Deterministic.

    Raises:
        ValueError: a shape, odd T, grid or device that does not fit.
        TypeError: a dtype that does not.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (ISSM).
    """
    height, width = _check.pair("split_index", "grid", grid)
    arguments = (
        x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool, reach
    )  # fmt: skip
    return SplitIndex(*run(OPERATOR, backend, *arguments))
