"""Triton kernels of ``lifting_loss``: partial sums of fixed chunks, then their sum; one launch where one
chunk holds the residual, as in IFDD.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Kernel, cdiv
from ifdd_kernels.triton._sums import sum_partials
from ifdd_kernels.triton._tuning import Config

#: Elements a program of the forward pass adds up.
CHUNK = 8192


@triton.jit
def loss_kernel(residual, partials, size, beta, factor, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """factor * sum of smooth L1 over one chunk of the residual."""
    total = tl.zeros((BLOCK,), tl.float32)
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    for start in range(0, CHUNK, BLOCK):
        place = begin + start + tl.arange(0, BLOCK)
        r = tl.abs(tl.load(residual + place, mask=place < size, other=0.0).to(tl.float32))
        total += tl.where(r < beta, 0.5 * r * r / beta, r - 0.5 * beta)
    tl.store(partials + tl.program_id(0), tl.sum(total, 0) * factor)


@triton.jit
def loss_backward_kernel(grad, residual, grad_residual, size, beta, factor, BLOCK: tl.constexpr):
    """grad factor clamp(r / beta, -1, 1)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r = tl.load(residual + place, mask=place < size, other=0.0).to(tl.float32)
    slope = tl.clamp(r / beta, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    value = tl.load(grad).to(tl.float32) * slope * factor
    tl.store(grad_residual + place, value.to(grad_residual.dtype.element_ty), mask=place < size)


LOSS = Kernel(
    loss_kernel,
    configs=lambda _: [Config({"BLOCK": 1024}, num_warps=4)],
    interpreter=lambda _: {"BLOCK": CHUNK},
)
LOSS_BACKWARD = Kernel(
    loss_backward_kernel,
    configs=lambda _: [Config({"BLOCK": 1024}, num_warps=4)],
    interpreter=lambda _: {"BLOCK": CHUNK},
)


def forward(residual: Tensor, weight: float, beta: float, mean: bool) -> Tensor:
    """``torch.ops.ifdd.lifting_loss``; a residual that is not dense costs a copy."""
    clips, size = residual.shape[0], residual.numel()
    if size == 0:  # a sum over no clips is 0, every mean over nothing is NaN
        value = 0.0 if clips == 0 and not mean else math.nan
        return residual.new_full((), value, dtype=torch.float32)
    programs = cdiv(size, CHUNK)
    loss = residual.new_empty((), dtype=torch.float32)
    partials = residual.new_empty(programs, 1, dtype=torch.float32) if programs > 1 else loss
    LOSS(
        lambda _: (programs,),
        residual=residual.contiguous(),
        partials=partials,
        size=size,
        beta=beta,
        factor=_factor(residual, weight, mean),
        CHUNK=CHUNK,
    )
    if programs > 1:
        sum_partials(partials, (loss,))
    return loss


def _factor(residual: Tensor, weight: float, mean: bool) -> float:
    """The loss's weight over the number of terms its mean has."""
    clips = residual.shape[0]
    cells = residual.numel() // max(clips, 1)
    return weight / (max(cells, 1) * (max(clips, 1) if mean else 1))


def backward(grad_loss: Tensor, residual: Tensor, weight: float, beta: float, mean: bool) -> Tensor:
    """``torch.ops.ifdd.lifting_loss_backward``."""
    grad_residual = residual.new_empty(residual.shape)
    size = residual.numel()
    LOSS_BACKWARD(
        lambda tiles: (cdiv(size, tiles["BLOCK"]),),
        grad=grad_loss,
        residual=residual.contiguous(),
        grad_residual=grad_residual,
        size=size,
        beta=beta,
        factor=_factor(residual, weight, mean),
    )
    return grad_residual
