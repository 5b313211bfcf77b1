"""Triton kernels of ``add_layer_norm``: a program takes whole rows, and in backward leaves their sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv, next_power_of_2
from ifdd_kernels.triton._sums import sum_partials
from ifdd_kernels.triton._tuning import Config

#: Programs of backward, each of which leaves the sums over its rows. Fixed, as is the order of all sums.
MOST_CHUNKS = 1024


@triton.jit
def add_norm_kernel(
    x, branch, kept, weight, bias, added, normed, mean, rstd, rows, sample_rows, channels, factor, eps,
    DROPPED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x + branch, dropped for some samples, its moments and its norm, of BLOCK_R rows."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    within = row < rows
    inside = within[:, None] & (c < channels)[None, :]
    place = (row * channels)[:, None] + c[None, :]
    y = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    if DROPPED:
        here = tl.load(kept + row // sample_rows, mask=within, other=0) != 0
        y *= tl.where(here, factor, 0.0)[:, None]
    y += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(added + place, y.to(added.dtype.element_ty), mask=inside)
    average = tl.sum(y, 1) / channels
    centred = tl.where(inside, y - average[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    tl.store(mean + row, average, mask=within)
    tl.store(rstd + row, inverse, mask=within)
    slope = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    offset = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    z = centred * inverse[:, None] * slope[None, :] + offset[None, :]
    tl.store(normed + place, z.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_backward_kernel(
    grad_added, grad_normed, added, weight, kept, mean, rstd, grad_x, grad_branch, partials,
    rows, chunk, sample_rows, channels, factor,
    USED: tl.constexpr, DROPPED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of ``chunk`` rows of x and branch, and the rows' share of those of weight and bias."""
    c = tl.arange(0, BLOCK_C)
    slope = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    weight_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    begin = tl.program_id(0).to(tl.int64) * chunk
    for start in range(0, chunk, BLOCK_R):
        step = start + tl.arange(0, BLOCK_R)
        row = begin + step
        within = (step < chunk) & (row < rows)
        inside = within[:, None] & (c < channels)[None, :]
        place = (row * channels)[:, None] + c[None, :]
        g = tl.load(grad_normed + place, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(rstd + row, mask=within, other=0.0)
        unit = (y - tl.load(mean + row, mask=within, other=0.0)[:, None]) * inverse[:, None]
        unit = tl.where(inside, unit, 0.0)
        weight_sum += g * unit
        bias_sum += g
        g *= slope[None, :]
        along = tl.sum(g * unit, 1) / channels
        grad = inverse[:, None] * (g - (tl.sum(g, 1) / channels)[:, None] - unit * along[:, None])
        if USED:
            grad += tl.load(grad_added + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + place, grad.to(grad_x.dtype.element_ty), mask=inside)
        if DROPPED:
            here = tl.load(kept + row // sample_rows, mask=within, other=0) != 0
            grad *= tl.where(here, factor, 0.0)[:, None]
        tl.store(grad_branch + place, grad.to(grad_branch.dtype.element_ty), mask=inside)
    share = partials + tl.program_id(0).to(tl.int64) * 2 * channels + c
    tl.store(share, tl.sum(weight_sum, 0), mask=c < channels)
    tl.store(share + channels, tl.sum(bias_sum, 0), mask=c < channels)


def _configs(*elements: int) -> Callable[[Arguments], Sequence[Config]]:
    """Configurations by the elements of a tile, whose rows are whole; eight values a thread or more."""

    def configs(arguments: Arguments) -> Sequence[Config]:
        width = next_power_of_2(arguments["channels"])
        tiles = dict.fromkeys(max(1, size // width) for size in elements)
        return [
            Config(
                {"BLOCK_R": r, "BLOCK_C": width},
                num_warps=max(1, min(16, r * width // 512)),
                num_stages=1,
            )
            for r in tiles
        ]

    return configs


def _interpreter(arguments: Arguments) -> dict[str, int]:
    return {"BLOCK_R": 64, "BLOCK_C": next_power_of_2(arguments["channels"])}


ADD_NORM = Kernel(add_norm_kernel, _configs(2048, 4096), key=("channels",), interpreter=_interpreter)
ADD_NORM_BACKWARD = Kernel(
    add_norm_backward_kernel, _configs(1024, 2048), key=("channels",), interpreter=_interpreter
)


def forward(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None, keep: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.add_layer_norm``; tensors that are not contiguous cost a copy."""
    x, branch = x.contiguous(), branch.contiguous()
    channels = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    added, normed = x.new_empty(x.shape), x.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    if rows == 0:
        return added, normed, mean, rstd
    ADD_NORM(
        lambda tiles: (cdiv(rows, tiles["BLOCK_R"]),),
        x=x,
        branch=branch,
        kept=x if kept is None else kept.contiguous().view(torch.uint8),
        weight=weight.contiguous(),
        bias=bias.contiguous(),
        added=added,
        normed=normed,
        mean=mean,
        rstd=rstd,
        rows=rows,
        sample_rows=rows // x.shape[0],
        channels=channels,
        factor=1.0 / keep,
        eps=eps,
        DROPPED=kept is not None,
    )
    return added, normed, mean, rstd


def backward(
    grad_added: Tensor | None,
    grad_normed: Tensor,
    added: Tensor,
    weight: Tensor,
    kept: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    keep: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.add_layer_norm_backward``: one pass over the rows, one over its partial sums."""
    grad_normed, added = grad_normed.contiguous(), added.contiguous()
    channels = added.shape[-1]
    rows = math.prod(added.shape[:-1])
    grad_x, grad_branch = (added.new_empty(added.shape) for _ in range(2))
    grad_weight, grad_bias = (weight.new_empty(weight.shape) for _ in range(2))
    if rows == 0:
        return grad_x, grad_branch, grad_weight.zero_(), grad_bias.zero_()
    chunk = cdiv(rows, MOST_CHUNKS)
    chunks = cdiv(rows, chunk)
    partials = added.new_empty(chunks, 2 * channels, dtype=torch.float32)
    ADD_NORM_BACKWARD(
        lambda _: (chunks,),
        grad_added=grad_normed if grad_added is None else grad_added.contiguous(),
        grad_normed=grad_normed,
        added=added,
        weight=weight.contiguous(),
        kept=added if kept is None else kept.contiguous().view(torch.uint8),
        mean=mean.contiguous(),
        rstd=rstd.contiguous(),
        grad_x=grad_x,
        grad_branch=grad_branch,
        partials=partials,
        rows=rows,
        chunk=chunk,
        sample_rows=rows // added.shape[0],
        channels=channels,
        factor=1.0 / keep,
        USED=grad_added is not None,
        DROPPED=kept is not None,
    )
    sum_partials(partials, [grad_weight, grad_bias])
    return grad_x, grad_branch, grad_weight, grad_bias
