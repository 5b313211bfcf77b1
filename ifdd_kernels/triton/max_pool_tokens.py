"""Triton kernels of ``max_pool_tokens``: a cell reads its window, a row of x gathers its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.grids import pooled_grid
from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._tuning import Config


@triton.jit
def _cell(row, height, width):
    """(t, y, x) of rows that follow the class token."""
    place = tl.maximum(row - 1, 0)
    return place // (height * width), place // width % height, place % width


@triton.jit
def max_pool_forward(
    x, out, rows, x_batch, x_token, channels,
    grid_t, grid_h, grid_w, out_t, out_h, out_w, step_t, step_h, step_w, size_t, size_h, size_w,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of out (B, 1 + N', C), and for its cells the row of x that each value is from."""
    count = 1 + out_t * out_h * out_w
    blocks = tl.cdiv(count, BLOCK_R)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = (row < count)[:, None] & (c < channels)[None, :]
    t, y, z = _cell(row, out_h, out_w)
    first_t = t * step_t - size_t // 2
    first_y = y * step_h - size_h // 2
    first_x = z * step_w - size_w // 2
    tokens = x + batch * x_batch
    # The class token is its own window. Comparisons are in float32: each 16-bit value is one of its.
    best = tl.load(tokens + c, mask=c < channels, other=0.0).to(tl.float32)
    best = tl.broadcast_to(best[None, :], (BLOCK_R, BLOCK_C))
    found = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)
    for tap in range(size_t * size_h * size_w):
        at_t = first_t + tap // (size_h * size_w)
        at_y = first_y + tap // size_w % size_h
        at_x = first_x + tap % size_w
        inside = (at_t >= 0) & (at_t < grid_t) & (at_y >= 0) & (at_y < grid_h) & (at_x >= 0) & (at_x < grid_w)
        inside = inside & (row > 0)
        place = 1 + (at_t * grid_h + at_y) * grid_w + at_x
        source = tokens + tl.where(inside, place, 0).to(tl.int64) * x_token
        value = tl.load(source[:, None] + c[None, :], mask=inside[:, None] & real, other=0.0).to(tl.float32)
        # As PyTorch: the first of equal values, and a NaN whatever came before.
        taken = inside[:, None] & ((found == 0) | (value > best) | (value != value))
        best = tl.where(taken, value, best)
        found = tl.where(taken, place[:, None], found)
    cells = (batch * count + row) * channels
    tl.store(out + cells[:, None] + c[None, :], best.to(out.dtype.element_ty), mask=real)
    of_cell = (batch * (count - 1) + row - 1) * channels
    tl.store(rows + of_cell[:, None] + c[None, :], found, mask=real & (row > 0)[:, None])


@triton.jit
def max_pool_backward(
    grad_out, rows, grad_x, channels,
    grid_t, grid_h, grid_w, out_t, out_h, out_w, step_t, step_h, step_w, size_t, size_h, size_w,
    SHARED_T: tl.constexpr, SHARED_H: tl.constexpr, SHARED_W: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of grad_x (B, 1 + N, C): the gradients of the cells that took their value there.

    A window is one cell longer than its stride, so along an axis a cell lies in ``SHARED_*`` windows, 1 or 2.
    """
    count = 1 + grid_t * grid_h * grid_w
    cells = out_t * out_h * out_w
    blocks = tl.cdiv(count, BLOCK_R)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    row = tl.program_id(0) % blocks * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = (row < count)[:, None] & (c < channels)[None, :]
    t, y, z = _cell(row, grid_h, grid_w)
    last_t = (t + size_t // 2) // step_t
    last_y = (y + size_h // 2) // step_h
    last_x = (z + size_w // 2) // step_w
    grads = grad_out + batch * (1 + cells) * channels
    chosen = rows + batch * cells * channels
    sums = tl.load(grads + c[None, :], mask=(row == 0)[:, None] & real, other=0.0).to(tl.float32)
    # In the order of the windows, as a sum over them would add.
    for shared in tl.static_range(SHARED_T * SHARED_H * SHARED_W):
        at_t = last_t - (SHARED_T - 1 - shared // (SHARED_H * SHARED_W))
        at_y = last_y - (SHARED_H - 1 - shared // SHARED_W % SHARED_H)
        at_x = last_x - (SHARED_W - 1 - shared % SHARED_W)
        inside = (at_t >= 0) & (at_t < out_t) & (at_y >= 0) & (at_y < out_h) & (at_x >= 0) & (at_x < out_w)
        place = tl.where(inside & (row > 0), (at_t * out_h + at_y) * out_w + at_x, 0).to(tl.int64) * channels
        asked = (inside & (row > 0))[:, None] & real
        source = tl.load(chosen + place[:, None] + c[None, :], mask=asked, other=0)
        mine = asked & (source == row[:, None])
        gradient = tl.load(grads + (channels + place)[:, None] + c[None, :], mask=mine, other=0.0)
        sums += tl.where(mine, gradient.to(tl.float32), 0.0)
    at = (batch * count + row) * channels
    tl.store(grad_x + at[:, None] + c[None, :], sums.to(grad_x.dtype.element_ty), mask=real)


def _configs(*elements: int) -> Callable[[Arguments], Sequence[Config]]:
    """Configurations by the elements of a tile, eight a thread."""

    def configs(arguments: Arguments) -> Sequence[Config]:
        width = min(128, next_power_of_2(arguments["channels"]))
        return [
            Config(
                {"BLOCK_R": max(1, size // width), "BLOCK_C": width}, num_warps=max(1, min(8, size // 256))
            )
            for size in elements
        ]

    return configs


def _interpreter(arguments: Arguments) -> dict[str, int]:
    return {"BLOCK_R": 256, "BLOCK_C": next_power_of_2(arguments["channels"])}


FORWARD = Kernel(max_pool_forward, _configs(1024, 2048), key=("channels",), interpreter=_interpreter)
BACKWARD = Kernel(max_pool_backward, _configs(1024, 2048), key=("channels",), interpreter=_interpreter)


def _windows(grid: Sequence[int], stride: Sequence[int]) -> tuple[list[int], dict[str, int]]:
    """Grid of the result, and the arguments that both kernels have in common."""
    out_grid = pooled_grid(grid, stride)
    # From twice the axis on the one window holds every cell; so far no coordinate leaves 32 bits.
    steps = [min(step, 2 * size) for step, size in zip(stride, grid, strict=True)]
    arguments: dict[str, int] = {}
    for axis, size, out, step in zip("thw", grid, out_grid, steps, strict=True):
        arguments |= {f"grid_{axis}": size, f"out_{axis}": out, f"step_{axis}": step}
        arguments[f"size_{axis}"] = step + 1 if step > 1 else 1
    return list(out_grid), arguments


def forward(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``torch.ops.ifdd.max_pool_tokens``; only the channels of x have to be dense."""
    x = contiguous_channels(x)
    batch, _, channels = x.shape
    out_grid, windows = _windows(grid, stride)
    cells = math.prod(out_grid)
    out = x.new_empty(batch, 1 + cells, channels)
    rows = x.new_empty(batch, cells, channels, dtype=torch.int32)
    if out.numel():
        FORWARD(
            lambda tiles: (batch * cdiv(1 + cells, tiles["BLOCK_R"]), cdiv(channels, tiles["BLOCK_C"])),
            x=x,
            out=out,
            rows=rows,
            x_batch=x.stride(0),
            x_token=x.stride(1),
            channels=channels,
            **windows,
        )
    return out, rows


def backward(grad_out: Tensor, rows: Tensor, grid: Sequence[int], stride: Sequence[int]) -> Tensor:
    """``torch.ops.ifdd.max_pool_tokens_backward``: every value is written once, by one program."""
    grad_out, rows = grad_out.contiguous(), rows.contiguous()
    batch, _, channels = grad_out.shape
    _, windows = _windows(grid, stride)
    count = 1 + math.prod(grid)
    grad_x = grad_out.new_empty(batch, count, channels)
    if grad_x.numel():
        BACKWARD(
            lambda tiles: (batch * cdiv(count, tiles["BLOCK_R"]), cdiv(channels, tiles["BLOCK_C"])),
            grad_out=grad_out,
            rows=rows,
            grad_x=grad_x,
            channels=channels,
            **windows,
            **{f"SHARED_{axis.upper()}": 2 if windows[f"step_{axis}"] > 1 else 1 for axis in "thw"},
        )
    return grad_x
