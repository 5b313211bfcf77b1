"""``lifting_residual``: what the static group keeps apart from the mean frame."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(x: Tensor, approximation: Tensor) -> None:
    op = "lifting_residual"
    _check.shape(op, "x", x, ("B", "T", "N", "C"))
    _check.floating(op, "x", x)
    _check.shape(op, "approximation", approximation, (x.shape[0], "K", *x.shape[2:]))
    _check.floating(op, "approximation", approximation)
    _check.device(op, "approximation", approximation, "x", x)
    if accumulator(x.dtype) != accumulator(approximation.dtype):
        raise TypeError(
            f"{op}: approximation must be float64 exactly if x is, got {approximation.dtype} with {x.dtype}"
        )


def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], dtype=accumulator(x.dtype))


def _fake_backward(x: Tensor, approximation: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), approximation.new_empty(approximation.shape)


OPERATOR = register(
    "lifting_residual",
    "(Tensor x, Tensor approximation) -> Tensor residual",
    reference=reference.lifting_residual,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("lifting_residual")},
    backward=Backward(
        # The inputs are passed for their shapes and dtypes only; both are kept by their producers.
        schema="(Tensor grad_residual, Tensor x, Tensor approximation)"
        " -> (Tensor grad_x, Tensor grad_approximation)",
        reference=reference.lifting_residual_backward,
        fake=_fake_backward,
    ),
)


def lifting_residual(x: Tensor, approximation: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Mean of the frames minus mean of the approximation, per token.

    .. math:: r_n = \frac{1}{TC} \sum_{t,c} x_{tnc} - \frac{1}{KC} \sum_{k,c} y_{knc}

    With K = T/2 this is the channel and time mean of (x averaged over frame pairs) - y.

    Args:
        x: frames (B, T, N, C) that went into the lifting scheme; float16 to float64, any strides.
        approximation: y, (B, K, N, C), the updated static group.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, N) in float32 (float64 for float64), under autocast too.

    Gradients flow to both. Deterministic.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (lifting loss).
    """
    residual: Tensor = run(OPERATOR, backend, x, approximation)
    return residual
