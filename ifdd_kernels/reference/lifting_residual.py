"""Definition of ``lifting_residual``."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def lifting_residual(x: Tensor, approximation: Tensor) -> Tensor:
    """Mean over (T, C) of x minus mean over (K, C) of the approximation: (B, N)."""
    dtype = accumulator(x.dtype)
    return x.to(dtype).mean((1, 3)) - approximation.to(dtype).mean((1, 3))


def lifting_residual_backward(
    grad_residual: Tensor, x: Tensor, approximation: Tensor
) -> tuple[Tensor, Tensor]:
    """Every cell of a clip and position gets the same share of the gradient."""
    share = grad_residual[:, None, :, None]
    grad_x = (share / (x.shape[1] * x.shape[3])).to(x.dtype)
    grad_approximation = (-share / (approximation.shape[1] * approximation.shape[3])).to(approximation.dtype)
    return grad_x.expand(x.shape), grad_approximation.expand(approximation.shape)
