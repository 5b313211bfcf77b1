"""``lifting_loss``: smooth L1 distance of the lifting residual to zero."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin

REDUCTIONS = ("sum", "mean")


def _check_arguments(residual: Tensor, beta: float) -> None:
    if residual.dim() < 1:
        raise ValueError("lifting_loss: residual must have shape (B, ...), got a scalar")
    _check.floating("lifting_loss", "residual", residual)
    _check.positive("lifting_loss", beta=beta)


def _fake(residual: Tensor) -> Tensor:
    return residual.new_empty((), dtype=accumulator(residual.dtype))


def _fake_backward(residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


OPERATOR = register(
    "lifting_loss",
    # A flag, not a string: string arguments leak memory in the stable ABI.
    "(Tensor residual, float weight, float beta, bool mean) -> Tensor loss",
    reference=reference.lifting_loss,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("lifting_loss")},
    backward=Backward(
        schema="(Tensor grad_loss, Tensor residual, float weight, float beta, bool mean)"
        " -> Tensor grad_residual",
        reference=reference.lifting_loss_backward,
        fake=_fake_backward,
    ),
)


def lifting_loss(
    residual: Tensor,
    *,
    weight: float = 0.1,
    beta: float = 1.0,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    r"""Weighted smooth L1 loss of a residual against zero.

    .. math:: w \sum_b \mathrm{mean}_n\, \ell(r_{bn}), \qquad
        \ell(r) = r^2 / 2\beta \text{ if } |r| < \beta, \text{ else } |r| - \beta / 2

    Args:
        residual: r, (B, ...); float16, bfloat16, float32 or float64, any strides.
        weight: w.
        beta: where the square turns into the absolute value, positive.
        reduction: over the clips: ``"sum"`` (as IFDD trains) or ``"mean"``. Within a clip it is a mean.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        A scalar in float32 (float64 for float64), under autocast too. An empty batch sums to 0 and has
        no mean (NaN), as in PyTorch.

    The gradient of residual is w clamp(r / beta, -1, 1) over the number of cells. Deterministic.

    Raises:
        ValueError: a scalar residual, beta <= 0 or an unknown reduction.
        TypeError: not floating point.

    Source: Wang & Chai, AAAI 2025, arXiv:2412.13168 (lifting loss).
    """
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"lifting_loss: reduction must be 'sum' or 'mean', got {reduction!r}")
    mean = reduction == "mean"
    loss: Tensor = run(OPERATOR, backend, residual, weight, beta, mean)
    return loss
