"""Definition of ``gelu_linear``: a linear layer of GELU(x)."""

from __future__ import annotations

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
    # PyTorch's kernel computes both in float32 and writes in x's dtype: no wide copy of the hidden values.
    grad_hidden = torch.ops.aten.gelu_backward(grad_rows @ weight.to(x.dtype), rows)
    # A GPU sums 16-bit values in float32 and writes either dtype in the same pass.
    wide = weight.dtype if x.is_cuda else accumulator(x.dtype)
    grad_bias = grad_rows.sum(0, dtype=wide).to(weight.dtype)
    grad_weight = (grad_rows.T @ F.gelu(rows)).to(weight.dtype)
    return grad_hidden.reshape(x.shape), grad_weight, grad_bias
