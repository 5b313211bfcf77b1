"""Triton kernels of ``gelu_linear``: GELU, alone or with its gradient, beside PyTorch's products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._functions import gelu, gelu_slope
from ifdd_kernels.triton._runtime import Kernel, cdiv
from ifdd_kernels.triton._tuning import Config


@triton.jit
def gelu_values(x, activated, count, BLOCK: tl.constexpr):
    """activated = GELU(x), of BLOCK values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(activated + place, gelu(value).to(activated.dtype.element_ty), mask=inside)


@triton.jit
def gelu_both(x, grad, activated, grad_x, count, BLOCK: tl.constexpr):
    """activated = GELU(x) and grad_x = grad GELU'(x), of BLOCK values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(activated + place, gelu(value).to(activated.dtype.element_ty), mask=inside)
    slope = gelu_slope(value) * tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + place, slope.to(grad_x.dtype.element_ty), mask=inside)


def _kernel(function: Any) -> Kernel:
    return Kernel(
        function,
        lambda _: [Config({"BLOCK": 1024}, num_warps=4), Config({"BLOCK": 2048}, num_warps=4)],
        interpreter=lambda _: {"BLOCK": 1 << 16},
    )


GELU_VALUES = _kernel(gelu_values)
GELU_BOTH = _kernel(gelu_both)


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.ops.ifdd.gelu_linear``."""
    x = x.contiguous()
    activated = x.new_empty(x.shape)
    count = x.numel()
    if count:
        GELU_VALUES(lambda tiles: (cdiv(count, tiles["BLOCK"]),), x=x, activated=activated, count=count)
    return F.linear(activated, weight.to(x.dtype), bias.to(x.dtype))


def backward(grad_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.gelu_linear_backward``."""
    grad_rows = grad_out.reshape(-1, grad_out.shape[-1])
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    grad = grad_rows @ weight.to(x.dtype)
    activated, grad_x = rows.new_empty(rows.shape), rows.new_empty(rows.shape)
    count = rows.numel()
    if count:
        GELU_BOTH(
            lambda tiles: (cdiv(count, tiles["BLOCK"]),),
            x=rows,
            grad=grad,
            activated=activated,
            grad_x=grad_x,
            count=count,
        )
    grad_weight = (grad_rows.T @ activated).to(weight.dtype)
    # A GPU sums 16-bit values in float32 and writes either dtype in the same pass.
    wide = weight.dtype if x.is_cuda else torch.float32
    grad_bias = grad_rows.sum(0, dtype=wide).to(weight.dtype)
    return grad_x.view(x.shape), grad_weight, grad_bias
