"""Triton kernel of ``gelu_linear``: GELU and its gradient in one pass, beside PyTorch's products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels import reference
from ifdd_kernels.triton._functions import gelu, gelu_slope
from ifdd_kernels.triton._runtime import Kernel, cdiv
from ifdd_kernels.triton._tuning import Config


@triton.jit
def gelu_both(x, grad, activated, grad_x, count, BLOCK: tl.constexpr):
    """activated = GELU(x) and grad_x = grad GELU'(x), of BLOCK values."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(activated + place, gelu(value).to(activated.dtype.element_ty), mask=inside)
    slope = gelu_slope(value) * tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(grad_x + place, slope.to(grad_x.dtype.element_ty), mask=inside)


GELU_BOTH = Kernel(
    gelu_both,
    lambda _: [Config({"BLOCK": 1024}, num_warps=4), Config({"BLOCK": 2048}, num_warps=4)],
    interpreter=lambda _: {"BLOCK": 1 << 16},
)


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.ops.ifdd.gelu_linear``: as the reference, a pass and a product of PyTorch's."""
    return reference.gelu_linear(x, weight, bias)


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
