"""Definition of ``linear``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K) -> (..., M)."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def linear_backward(grad_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    grad_rows, rows = grad_out.reshape(-1, grad_out.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_x = (grad_rows @ weight.to(x.dtype)).reshape(x.shape)
    grad_bias = grad_rows.sum(0, dtype=accumulator(x.dtype)).to(weight.dtype)
    return grad_x, (grad_rows.T @ rows).to(weight.dtype), grad_bias
