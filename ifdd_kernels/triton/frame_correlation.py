"""Triton kernels of ``frame_correlation``: one tile of frame pairs a program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._tuning import Config


@triton.jit
def correlation_kernel(
    z, correlation, frames, width, scale, stride_b, stride_t,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """M = scale z z^T, (B, T, T). Only pairs t <= u are computed; the other half is their copy."""
    clip = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) <= tl.program_id(2):
        t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
        u = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
        base = z + clip * stride_b
        total = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        for start in range(0, width, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            rows = tl.load(
                (base + t.to(tl.int64) * stride_t)[:, None] + d[None, :],
                mask=(t < frames)[:, None] & (d < width)[None, :],
                other=0.0,
            )
            columns = tl.load(
                (base + u.to(tl.int64) * stride_t)[None, :] + d[:, None],
                mask=(u < frames)[None, :] & (d < width)[:, None],
                other=0.0,
            )
            total = tl.dot(rows.to(tl.float32), columns.to(tl.float32), total, input_precision="tf32x3")
        total *= scale
        pair = (t[:, None] <= u[None, :]) & (u < frames)[None, :]
        base = correlation + clip * frames * frames
        tl.store(base + t[:, None] * frames + u[None, :], total, mask=pair)
        tl.store(base + u[None, :] * frames + t[:, None], total, mask=pair & (t[:, None] < u[None, :]))


@triton.jit
def correlation_backward_kernel(
    grad, z, grad_z, frames, width, scale, stride_b, stride_t,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dz = scale (G + G^T) z, (B, T, D)."""
    clip = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, frames, BLOCK_T):
        u = start + tl.arange(0, BLOCK_T)
        pairs = symmetric_gradient(grad + clip * frames * frames, t, u, frames)
        values = tl.load(
            (z + clip * stride_b + u.to(tl.int64) * stride_t)[:, None] + d[None, :],
            mask=(u < frames)[:, None] & (d < width)[None, :],
            other=0.0,
        )
        total = tl.dot(pairs, values.to(tl.float32), total, input_precision="tf32x3")
    target = (grad_z + (clip * frames + t) * width)[:, None] + d[None, :]
    inside = (t < frames)[:, None] & (d < width)[None, :]
    tl.store(target, (total * scale).to(grad_z.dtype.element_ty), mask=inside)


@triton.jit
def symmetric_gradient(grad, t, u, frames):
    """G + G^T of the pairs (t, u) of one clip's (T, T) matrix, in float32."""
    inside = (t < frames)[:, None] & (u < frames)[None, :]
    direct = tl.load(grad + t[:, None] * frames + u[None, :], mask=inside, other=0.0)
    mirrored = tl.load(grad + u[None, :] * frames + t[:, None], mask=inside, other=0.0)
    return direct.to(tl.float32) + mirrored.to(tl.float32)


def _configs(arguments: Arguments) -> Sequence[Config]:
    frames = max(16, min(32, next_power_of_2(arguments["frames"])))
    return [Config({"BLOCK_T": frames, "BLOCK_D": 32}, num_warps=frames // 8, num_stages=3)]


def _interpreted(arguments: Arguments) -> dict[str, int]:
    return {"BLOCK_T": max(16, min(64, next_power_of_2(arguments["frames"]))), "BLOCK_D": 64}


CORRELATION = Kernel(correlation_kernel, _configs, interpreter=_interpreted)
CORRELATION_BACKWARD = Kernel(correlation_backward_kernel, _configs, interpreter=_interpreted)


def forward(tokens: Tensor, scale: float) -> Tensor:
    """``torch.ops.ifdd.frame_correlation``; tokens whose last axis is not dense cost a copy."""
    tokens = contiguous_channels(tokens)
    batch, frames, width = tokens.shape
    correlation = tokens.new_empty(batch, frames, frames, dtype=torch.float32)

    def grid(tiles: Arguments) -> tuple[int, ...]:
        blocks = cdiv(frames, tiles["BLOCK_T"])
        return batch, blocks, blocks

    CORRELATION(
        grid,
        z=tokens,
        correlation=correlation,
        frames=frames,
        width=width,
        scale=scale,
        stride_b=tokens.stride(0),
        stride_t=tokens.stride(1),
    )
    return correlation


def backward(grad_correlation: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """``torch.ops.ifdd.frame_correlation_backward``."""
    tokens = contiguous_channels(tokens)
    batch, frames, width = tokens.shape
    grad_tokens = tokens.new_empty(tokens.shape)
    CORRELATION_BACKWARD(
        lambda tiles: (batch, cdiv(frames, tiles["BLOCK_T"]), cdiv(width, tiles["BLOCK_D"])),
        grad=grad_correlation.contiguous(),
        z=tokens,
        grad_z=grad_tokens,
        frames=frames,
        width=width,
        scale=scale,
        stride_b=tokens.stride(0),
        stride_t=tokens.stride(1),
    )
    return grad_tokens
