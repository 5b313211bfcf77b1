"""``add_layer_norm``: a residual branch joined and the sum normalised for the next layer, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels import _check, _cuda_limits, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.reference._common import accumulator
from ifdd_kernels.triton import twin


def _check_arguments(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None, keep: float
) -> None:
    op = "add_layer_norm"
    _check.floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape (B, ..., C) with at least two axes, got {tuple(x.shape)}")
    _check.channels(op, "x", x)
    _check.shape(op, "branch", branch, x.shape)
    _check.same(op, "branch", branch, "x", x)
    _check.parameter(op, "weight", weight, (x.shape[-1],), "x", x)
    _check.shape(op, "bias", bias, (x.shape[-1],))
    _check.same(op, "bias", bias, "weight", weight)
    if kept is not None:
        _check.shape(op, "kept", kept, (x.shape[0],))
        if kept.dtype != torch.bool:
            raise TypeError(f"{op}: kept must be torch.bool, got {kept.dtype}")
    _check.positive(op, keep=keep)


def _fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=accumulator(x.dtype)) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


def _fake_backward(added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_branch = (added.new_empty(added.shape) for _ in range(2))
    return grad_x, grad_branch, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _cuda_limit(x: Tensor | None) -> str:
    if not isinstance(x, Tensor) or x.dim() < 2:
        return ""
    return _cuda_limits.most("channels", _cuda_limits.NORMED_CHANNELS, x.shape[-1])


OPERATOR = register(
    "add_layer_norm",
    "(Tensor x, Tensor branch, Tensor weight, Tensor bias, Tensor? kept, float keep, float eps)"
    " -> (Tensor added, Tensor normed, Tensor mean, Tensor rstd)",
    reference=reference.add_layer_norm,
    fake=_fake,
    check=_check_arguments,
    backends={"triton": twin("add_layer_norm")},
    backward=Backward(
        # The sum may be used by nobody but its norm: then it has no gradient of its own.
        schema="(Tensor? grad_added, Tensor grad_normed, Tensor added, Tensor weight, Tensor? kept,"
        " Tensor mean, Tensor rstd, float keep)"
        " -> (Tensor grad_x, Tensor grad_branch, Tensor grad_weight, Tensor grad_bias)",
        reference=reference.add_layer_norm_backward,
        fake=_fake_backward,
        missing={
            "x": lambda added: added,
            "branch": lambda added: added,
            "bias": lambda weight: weight,
            "eps": lambda: 1.0,
        },
    ),
    non_differentiable=("mean", "rstd"),
    parameters=("weight", "bias"),
    cuda_limit=_cuda_limit,
)


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    kept: Tensor | None = None,
    keep: float = 1.0,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""A residual branch, dropped for some samples, added to its stream, and the LayerNorm of the sum.

    .. math:: y_{bn} = x_{bn} + \frac{k_b}{p}\,r_{bn}, \qquad
        z_{bnc} = \frac{y_{bnc} - \mu_{bn}}{\sqrt{\sigma^2_{bn} + \epsilon}}\,w_c + \beta_c

    with mean and variance over the channels, in float32 (float64 for float64), of the sum before it is
    rounded to x's dtype. Backward is as short: one pass over both gradients forms those of x and of the
    branch, where PyTorch adds, multiplies and normalises in three.

    Args:
        x: the stream, (B, ..., C); float16 to float64, any strides. Autocast casts none of the arguments.
        branch: r, of x's shape and dtype.
        weight: w, (C,), in x's dtype or float32 (float64 with float64).
        bias: beta, (C,), in weight's dtype.
        kept: k, (B,), bool: the samples that keep their branch, divided by ``keep``; all, undivided, if not
            given. Stochastic depth draws it.
        keep: p, the probability that a sample is kept; above 0.
        eps: epsilon, at least 0.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        The sum y and its norm z, both of x's shape and dtype.

    Gradients flow to x, branch, weight and bias. Deterministic. Kept for backward are y and two numbers a
    row, not x or the branch.

    Raises:
        ValueError: a shape, device or probability that does not fit.
        TypeError: a dtype that does not.

    Source: Ba et al., "Layer Normalization", arXiv:1607.06450; Huang et al., "Deep Networks with Stochastic
    Depth", arXiv:1603.09382.
    """
    added, normed, _, _ = run(OPERATOR, backend, x, branch, weight, bias, kept, keep, eps)
    return added, normed
