"""``frame_correlation``: scaled dot products between the tokens of all frames of a clip."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(tokens: Tensor) -> None:
    _check.shape("frame_correlation", "tokens", tokens, ("B", "T", "D"))
    _check.floating("frame_correlation", "tokens", tokens)
    _check.extent("frame_correlation", "tokens", (tokens.shape[0], tokens.shape[1], tokens.shape[1]))


def _fake(tokens: Tensor) -> Tensor:
    batch, frames, _ = tokens.shape
    return tokens.new_empty(batch, frames, frames, dtype=accumulator(tokens.dtype))


def _fake_backward(tokens: Tensor) -> Tensor:
    return tokens.new_empty(tokens.shape)


OPERATOR = register(
    "frame_correlation",
    "(Tensor tokens, float scale) -> Tensor correlation",
    reference=reference.frame_correlation,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("frame_correlation")},
    backward=Backward(
        schema="(Tensor grad_correlation, Tensor tokens, float scale) -> Tensor grad_tokens",
        reference=reference.frame_correlation_backward,
        fake=_fake_backward,
    ),
)


def frame_correlation(tokens: Tensor, scale: float, *, backend: str = "auto") -> Tensor:
    r"""Correlation of every pair of frames.

    .. math:: M_{tu} = s \, \langle z_t, z_u \rangle

    Args:
        tokens: z, (B, T, D); float16, bfloat16, float32 or float64, any strides.
        scale: s; IFDD uses 1/C with C the channels of the frames, not 1/sqrt(D).
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, T, T), symmetric, in float32 (float64 for float64 tokens), under autocast too.

    The gradient of tokens is s (G + G^T) z. Deterministic.

    Raises:
        ValueError: tokens are not (B, T, D).
        TypeError: they are not floating point.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (ISSM).
    """
    correlation: Tensor = run(OPERATOR, backend, tokens, scale)
    return correlation
