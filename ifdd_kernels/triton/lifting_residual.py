"""Triton kernels of ``lifting_residual``: one program per clip and position sums both groups' rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import (
    OLDER_COMPILER,
    Arguments,
    Kernel,
    cdiv,
    contiguous_channels,
    next_power_of_2,
)
from ifdd_kernels.triton._tuning import Config


@triton.jit
def residual_kernel(
    x, approximation, residual, frames, count, tokens, channels, x_size, approximation_size,
    x_stride_b, x_stride_t, x_stride_n, approximation_stride_b, approximation_stride_t,
    approximation_stride_n,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (position, clip): sum(x) / x_size - sum(approximation) / approximation_size, (B, N)."""
    token, clip = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    first = x + clip * x_stride_b + token * x_stride_n
    second = approximation + clip * approximation_stride_b + token * approximation_stride_n
    mean = _row_sum(first, frames, channels, x_stride_t, BLOCK_T, BLOCK_C) / x_size
    mean -= _row_sum(second, count, channels, approximation_stride_t, BLOCK_T, BLOCK_C) / approximation_size
    tl.store(residual + clip * tokens + token, mean)


@triton.jit
def _row_sum(base, rows, channels, stride, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        for left in range(0, channels, BLOCK_C):
            c = left + tl.arange(0, BLOCK_C)
            inside = (t < rows)[:, None] & (c < channels)[None, :]
            row = (base + t.to(tl.int64) * stride)[:, None] + c[None, :]
            total += tl.load(row, mask=inside, other=0.0).to(tl.float32)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def spread_kernel(
    grad, grad_x, grad_approximation, x_rows, approximation_rows, frames, count, tokens, channels,
    x_size, approximation_size,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grad / x_size and -grad / approximation_size to every cell of the two inputs, one launch."""
    x_programs = tl.cdiv(x_rows, BLOCK_R)
    program = tl.program_id(0)
    if program < x_programs:
        _spread(grad, grad_x, program, x_rows, frames, tokens, channels, x_size, BLOCK_R, BLOCK_C)
    else:
        _spread(
            grad, grad_approximation, program - x_programs, approximation_rows, count, tokens, channels,
            -approximation_size, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _spread(
    grad, out, program, rows, frames, tokens, channels, size,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = program * BLOCK_R + tl.arange(0, BLOCK_R)
    cell = row // (frames * tokens) * tokens + row % tokens
    share = (tl.load(grad + cell, mask=row < rows, other=0.0).to(tl.float32) / size).to(out.dtype.element_ty)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (row < rows)[:, None] & (c < channels)[None, :]
        values = tl.broadcast_to(share[:, None], (BLOCK_R, BLOCK_C))
        tl.store((out + row.to(tl.int64) * channels)[:, None] + c[None, :], values, mask=inside)


def _configs(rows: str, *choices: tuple[int, int, int]) -> Callable[[Arguments], Sequence[Config]]:
    """Configurations (rows, channels, warps), narrowed to the channels there are."""

    def configs(arguments: Arguments) -> Sequence[Config]:
        widest = next_power_of_2(arguments["channels"])
        found = dict.fromkeys((r, min(c, widest), w) for r, c, w in choices)
        return [Config({rows: r, "BLOCK_C": c}, num_warps=w, num_stages=1) for r, c, w in found]

    return configs


RESIDUAL = Kernel(
    residual_kernel,
    _configs("BLOCK_T", (4, 1024, 4), *(() if OLDER_COMPILER else ((2, 1024, 2),))),
    key=("frames", "count", "tokens", "channels"),
    interpreter=lambda a: {
        "BLOCK_T": min(16, next_power_of_2(a["frames"])),
        "BLOCK_C": min(1024, next_power_of_2(a["channels"])),
    },
)
SPREAD = Kernel(
    spread_kernel,
    _configs("BLOCK_R", (4, 1024, 4), (8, 1024, 4), (8, 256, 2)),
    key=("channels",),
    interpreter=lambda a: {"BLOCK_R": 64, "BLOCK_C": min(1024, next_power_of_2(a["channels"]))},
)


def forward(x: Tensor, approximation: Tensor) -> Tensor:
    """``torch.ops.ifdd.lifting_residual``; channels that are not dense cost a copy."""
    x, approximation = contiguous_channels(x), contiguous_channels(approximation)
    batch, frames, tokens, channels = x.shape
    count = approximation.shape[1]
    residual = x.new_empty(batch, tokens, dtype=torch.float32)
    names = ("stride_b", "stride_t", "stride_n")
    RESIDUAL(
        lambda _: (tokens, batch),
        x=x,
        approximation=approximation,
        residual=residual,
        frames=frames,
        count=count,
        tokens=tokens,
        channels=channels,
        x_size=float(frames * channels),
        approximation_size=float(count * channels),
        **{f"x_{name}": stride for name, stride in zip(names, x.stride()[:3], strict=True)},
        **{
            f"approximation_{name}": stride
            for name, stride in zip(names, approximation.stride()[:3], strict=True)
        },
    )
    return residual


def backward(grad_residual: Tensor, x: Tensor, approximation: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.ops.ifdd.lifting_residual_backward``; reads nothing of x and approximation."""
    batch, frames, tokens, channels = x.shape
    count = approximation.shape[1]
    grad_x = x.new_empty(x.shape)
    grad_approximation = approximation.new_empty(approximation.shape)
    x_rows, approximation_rows = batch * frames * tokens, batch * count * tokens
    SPREAD(
        lambda tiles: (cdiv(x_rows, tiles["BLOCK_R"]) + cdiv(approximation_rows, tiles["BLOCK_R"]),),
        grad=grad_residual.contiguous(),
        grad_x=grad_x,
        grad_approximation=grad_approximation,
        x_rows=x_rows,
        approximation_rows=approximation_rows,
        frames=frames,
        count=count,
        tokens=tokens,
        channels=channels,
        x_size=float(frames * channels),
        approximation_size=float(count * channels),
    )
    return grad_x, grad_approximation
