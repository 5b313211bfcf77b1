"""Definition of ``gelu_linear``: a linear layer of GELU(x)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., K) -> (..., M)."""
    return F.linear(F.gelu(x), weight.to(x.dtype), bias.to(x.dtype))


def gelu_linear_backward(grad_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; GELU(x) is computed again."""
    grad_rows, rows = grad_out.reshape(-1, grad_out.shape[-1]), x.reshape(-1, x.shape[-1])
    wide = rows.to(accumulator(x.dtype))
    cdf = 0.5 * torch.erfc(wide * -math.sqrt(0.5))
    slope = cdf + wide * torch.exp(-0.5 * wide.square()) / math.sqrt(2 * math.pi)
    grad_x = ((grad_rows @ weight.to(x.dtype)).to(wide.dtype) * slope).to(x.dtype).reshape(x.shape)
    grad_bias = grad_rows.to(wide.dtype).sum(0).to(weight.dtype)
    grad_weight = (grad_rows.T @ (wide * cdf).to(x.dtype)).to(weight.dtype)
    return grad_x, grad_weight, grad_bias
