"""Definition of ``add_layer_norm``: a branch, dropped for some samples, added to x, and the sum's norm."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels.reference._common import accumulator, layer_norm_backward, moments


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None, keep: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum and its norm, (B, ..., C) in x's dtype; mean and reciprocal deviation (B, ...)."""
    dtype = accumulator(x.dtype)
    wide = x.to(dtype) + _dropped(branch.to(dtype), kept, keep)
    mean, rstd = moments(wide, eps)
    normed = (wide - mean) * rstd * weight + bias
    return wide.to(x.dtype), normed.to(x.dtype), mean.squeeze(-1), rstd.squeeze(-1)


def add_layer_norm_backward(
    grad_added: Tensor | None,
    grad_normed: Tensor,
    added: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    keep: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, branch, weight and bias; ``grad_added`` is None where only the norm was used."""
    dtype = accumulator(added.dtype)
    normalised = (added.to(dtype) - mean[..., None]) * rstd[..., None]
    grad, grad_weight, grad_bias = layer_norm_backward(
        grad_normed.to(dtype), normalised, rstd[..., None], weight.to(dtype)
    )
    if grad_added is not None:
        grad = grad + grad_added.to(dtype)
    grad_branch = _dropped(grad, kept, keep).to(added.dtype)
    return grad.to(added.dtype), grad_branch, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


def _dropped(branch: Tensor, kept: Tensor | None, keep: float) -> Tensor:
    """branch / keep where the sample is kept, else 0."""
    if kept is None:
        return branch
    return branch * (kept.to(branch.dtype) / keep).reshape(-1, *[1] * (branch.dim() - 1))
