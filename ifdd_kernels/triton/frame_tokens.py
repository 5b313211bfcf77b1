"""Triton kernels of ``frame_tokens``.

The 1x1 convolution comes first and the pool second, q = W x_n for every cell n: both are linear, so nothing
changes but that x is read once, row by row, whatever the two grids are, and the pool handles S numbers a
cell instead of C. Pool, bias and GELU are a device function that :mod:`split_index` also starts from. In
backward dx_n = W^T g_n and dW = sum_n g_n x_n^T with g = pool^T of the gradient before the activation; the
weight gradient goes to partial sums over fixed runs of cells, added in order.

Products are three TF32 products or float32 whatever PyTorch allows elsewhere: this chain ends in frame
indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._functions import gelu, gelu_slope, window_start, window_stop
from ifdd_kernels.triton._pooling import reach_constants, window_constants
from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._sums import sum_partials
from ifdd_kernels.triton._tuning import Config, Grid


@triton.jit
def frame_rows(pointer, row, frames, tokens, stride_b, stride_t, stride_n):
    """Pointers to the rows of frames (B, T, N, C) that number ``row`` of B*T*N is."""
    clip = row // (frames * tokens)
    frame = row // tokens % frames
    token = row % tokens
    return (
        pointer + clip.to(tl.int64) * stride_b + frame.to(tl.int64) * stride_t + token.to(tl.int64) * stride_n
    )


@triton.jit
def project_cells_kernel(
    x, weight, cells, rows, frames, tokens, channels, outputs, stride_b, stride_t, stride_n,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """q = x W^T: (B*T*N, C) and (S, C) -> cells (B*T*N, S) in float32."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    output = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    frame = frame_rows(x, row, frames, tokens, stride_b, stride_t, stride_n)
    total = tl.zeros((BLOCK_R, BLOCK_S), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (row < rows)[:, None] & (c < channels)[None, :]
        values = tl.load(frame[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = (output < outputs)[None, :] & (c < channels)[:, None]
        matrix = tl.load(weight + output[None, :] * channels + c[:, None], mask=inside, other=0.0)
        total = tl.dot(values, matrix.to(tl.float32), total, input_precision="tf32x3")
    target = cells + row.to(tl.int64) * outputs
    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(target[:, None] + output[None, :], total, mask=inside)


@triton.jit
def token_inputs(
    cells, bias, frame, frame_inside, token, outputs,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr,
):  # fmt: skip
    """What the GELU acts on, (frame, token): averages of cells (frames, H*W, S) and the bias.

    Tokens are channel-major, token = (s, y, x) of (S, P, P).
    """
    output = token // (POOL * POOL)
    y = token // POOL % POOL
    x = token % POOL
    token_inside = output < outputs
    top, bottom = window_start(y, HEIGHT, POOL), window_stop(y, HEIGHT, POOL)
    left, right = window_start(x, WIDTH, POOL), window_stop(x, WIDTH, POOL)
    base = (cells + frame.to(tl.int64) * (HEIGHT * WIDTH * outputs))[:, None] + output[None, :]
    total = tl.zeros((frame.shape[0], token.shape[0]), tl.float32)
    for i in range(WINDOW_H):
        for j in range(WINDOW_W):
            row, column = top + i, left + j
            inside = token_inside & (row < bottom) & (column < right)
            cell = (row * WIDTH + column) * outputs
            total += tl.load(base + cell[None, :], mask=frame_inside[:, None] & inside[None, :], other=0.0)
    area = ((bottom - top) * (right - left)).to(tl.float32)
    shift = tl.load(bias + output, mask=token_inside, other=0.0).to(tl.float32)
    return total / area[None, :] + shift[None, :]


@triton.jit
def tokens_kernel(
    cells, bias, tokens, frames, width, outputs,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tokens (B*T, S*P*P) from projected cells."""
    frame = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    before = token_inputs(
        cells, bias, frame, frame < frames, token, outputs, HEIGHT, WIDTH, POOL, WINDOW_H, WINDOW_W
    )
    target = (tokens + frame.to(tl.int64) * width)[:, None] + token[None, :]
    tl.store(target, gelu(before), mask=(frame < frames)[:, None] & (token < width)[None, :])


@triton.jit
def tokens_backward_kernel(
    grad, cells, bias, grad_inner, frames, width, outputs,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient before the activation, (B*T, S*P*P)."""
    frame = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    before = token_inputs(
        cells, bias, frame, frame < frames, token, outputs, HEIGHT, WIDTH, POOL, WINDOW_H, WINDOW_W
    )
    inside = (frame < frames)[:, None] & (token < width)[None, :]
    first = frame.to(tl.int64) * width
    values = tl.load((grad + first)[:, None] + token[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store((grad_inner + first)[:, None] + token[None, :], values * gelu_slope(before), mask=inside)


@triton.jit
def cell_gradients(
    grad_inner, row, row_inside, output, outputs,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr,
):  # fmt: skip
    """pool^T: the gradient g (row, output) of projected cells from grad_inner (B*T, S, P, P).

    Gathered, so that overlapping averages need no atomics: a cell lies in a run of averages per axis.
    """
    cell = row % (HEIGHT * WIDTH)
    y, x = cell // WIDTH, cell % WIDTH
    top, bottom = window_start(y, POOL, HEIGHT), window_stop(y, POOL, HEIGHT)
    left, right = window_start(x, POOL, WIDTH), window_stop(x, POOL, WIDTH)
    frame = (row // (HEIGHT * WIDTH)).to(tl.int64) * (outputs * POOL * POOL)
    base = (grad_inner + frame)[:, None] + (output * (POOL * POOL))[None, :]
    total = tl.zeros((row.shape[0], output.shape[0]), tl.float32)
    for i in range(REACH_H):
        for j in range(REACH_W):
            p, q = top + i, left + j
            inside = row_inside & (p < bottom) & (q < right)
            height = window_stop(p, HEIGHT, POOL) - window_start(p, HEIGHT, POOL)
            width = window_stop(q, WIDTH, POOL) - window_start(q, WIDTH, POOL)
            values = tl.load(
                base + (p * POOL + q)[:, None],
                mask=inside[:, None] & (output < outputs)[None, :],
                other=0.0,
            )
            total += values / (height * width).to(tl.float32)[:, None]
    return total


@triton.jit
def frames_gradient_kernel(
    grad_inner, weight, grad_x, rows, channels, outputs,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = g W: grad_x (B*T*N, C)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, outputs, BLOCK_S):
        output = start + tl.arange(0, BLOCK_S)
        g = cell_gradients(
            grad_inner, row, row < rows, output, outputs, HEIGHT, WIDTH, POOL, REACH_H, REACH_W
        )
        inside = (output < outputs)[:, None] & (c < channels)[None, :]
        matrix = tl.load(weight + output[:, None] * channels + c[None, :], mask=inside, other=0.0)
        total = tl.dot(g, matrix.to(tl.float32), total, input_precision="tf32x3")
    target = (grad_x + row.to(tl.int64) * channels)[:, None] + c[None, :]
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    tl.store(target, total.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    grad_inner, x, partials, rows, run, frames, tokens, channels, outputs, stride_b, stride_t, stride_n,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partial sums of dW = g^T x and db = sum g over runs of cells: partials (runs, S*C + S)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    output = tl.program_id(2) * BLOCK_S + tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    bias = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, run, BLOCK_R):
        row = part * run + start + tl.arange(0, BLOCK_R)
        row_inside = (start + tl.arange(0, BLOCK_R) < run) & (row < rows)
        g = cell_gradients(
            grad_inner, row, row_inside, output, outputs, HEIGHT, WIDTH, POOL, REACH_H, REACH_W
        )
        frame = frame_rows(x, row, frames, tokens, stride_b, stride_t, stride_n)
        inside = row_inside[:, None] & (c < channels)[None, :]
        values = tl.load(frame[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        total = tl.dot(tl.trans(g), values, total, input_precision="tf32x3")
        bias += tl.sum(g, 0)
    base = partials + part.to(tl.int64) * (outputs * channels + outputs)
    place = output[:, None] * channels + c[None, :]
    tl.store(base + place, total, mask=(output < outputs)[:, None] & (c < channels)[None, :])
    if tl.program_id(1) == 0:
        tl.store(base + outputs * channels + output, bias, mask=output < outputs)


#: Rows of the token weight a program holds, the least of a product: IFDD has seven, and 32 spill on sm_80.
OUTPUTS = 16


def _rows_by_channels(*choices: tuple[int, int, int, int]) -> Callable[[Arguments], Sequence[Config]]:
    """Configurations (BLOCK_R, BLOCK_C, warps, stages), narrowed to the channels there are."""

    def configs(arguments: Arguments) -> Sequence[Config]:
        widest = max(16, next_power_of_2(arguments["channels"]))
        found = dict.fromkeys((r, min(c, widest), w, s) for r, c, w, s in choices)
        return [
            Config({"BLOCK_R": r, "BLOCK_S": OUTPUTS, "BLOCK_C": c}, num_warps=w, num_stages=s)
            for r, c, w, s in found
        ]

    return configs


def _interpreted(arguments: Arguments) -> dict[str, int]:
    return {
        "BLOCK_R": min(512, next_power_of_2(max(arguments["rows"], 1))),
        "BLOCK_S": next_power_of_2(arguments["outputs"]),
        "BLOCK_C": next_power_of_2(arguments["channels"]),
    }


def _token_configs(arguments: Arguments) -> Sequence[Config]:
    return [Config({"BLOCK_R": 4, "BLOCK_D": min(256, next_power_of_2(arguments["width"]))}, num_warps=4)]


def _interpreted_tokens(arguments: Arguments) -> dict[str, int]:
    return {
        "BLOCK_R": min(64, next_power_of_2(max(arguments["frames"], 1))),
        "BLOCK_D": min(1024, next_power_of_2(arguments["width"])),
    }


PROJECT_CELLS = Kernel(
    project_cells_kernel,
    _rows_by_channels((32, 32, 2, 4), (64, 32, 4, 4), (64, 64, 4, 3)),
    key=("channels", "outputs"),
    interpreter=_interpreted,
)
TOKENS = Kernel(tokens_kernel, _token_configs, interpreter=_interpreted_tokens)
TOKENS_BACKWARD = Kernel(tokens_backward_kernel, _token_configs, interpreter=_interpreted_tokens)
FRAMES_GRADIENT = Kernel(
    frames_gradient_kernel,
    _rows_by_channels((16, 128, 4, 1), (16, 256, 4, 1)),
    key=("channels", "outputs"),
    interpreter=_interpreted,
)
WEIGHT_GRADIENT = Kernel(
    weight_gradient_kernel,
    _rows_by_channels((32, 128, 4, 3), (32, 64, 2, 3), (32, 64, 4, 3)),
    key=("channels", "outputs"),
    interpreter=_interpreted,
)

#: Programs of the weight gradient along the cells: enough to fill a device together with those along the
#: channels, few enough for the partial sums to stay a few per cent of x.
RUNS = 32
#: Least cells a run, so that a small batch does not write more partial sums than it reads frames.
LEAST_RUN = 64


def project_cells(x: Tensor, weight: Tensor) -> Tensor:
    """W x_n for every cell: x (B, T, N, C) with dense channels -> (B*T*N, S) in float32."""
    batch, frames, tokens, channels = x.shape
    outputs = weight.shape[0]
    rows = batch * frames * tokens
    cells = x.new_empty(rows, outputs, dtype=torch.float32)
    PROJECT_CELLS(
        lambda tiles: (cdiv(rows, tiles["BLOCK_R"]), cdiv(outputs, tiles["BLOCK_S"])),
        x=x,
        weight=weight.contiguous(),
        cells=cells,
        rows=rows,
        frames=frames,
        tokens=tokens,
        channels=channels,
        outputs=outputs,
        **frame_strides(x),
    )
    return cells


def frame_strides(x: Tensor) -> dict[str, int]:
    """Strides of frames (B, T, N, C) beside that of the channels, which is 1."""
    stride_b, stride_t, stride_n, _ = x.stride()
    return {"stride_b": stride_b, "stride_t": stride_t, "stride_n": stride_n}


def forward(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> Tensor:
    """``torch.ops.ifdd.frame_tokens``; channels that are not dense cost a copy of x."""
    batch, frames = x.shape[:2]
    outputs = weight.shape[0]
    cells = project_cells(contiguous_channels(x), weight)
    tokens = x.new_empty(batch, frames, outputs * pool * pool, dtype=torch.float32)
    TOKENS(
        _token_grid(batch * frames, tokens.shape[2]),
        cells=cells,
        bias=bias.contiguous(),
        tokens=tokens,
        frames=batch * frames,
        width=tokens.shape[2],
        outputs=outputs,
        **window_constants(height, width, pool),
    )
    return tokens


def _token_grid(frames: int, width: int) -> Grid:
    return lambda tiles: (cdiv(frames, tiles["BLOCK_R"]), cdiv(width, tiles["BLOCK_D"]))


def backward(
    grad_tokens: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.frame_tokens_backward``."""
    x = contiguous_channels(x)
    cells = project_cells(x, weight)
    grad_tokens = grad_tokens.contiguous()
    grad_inner = torch.empty_like(grad_tokens, dtype=torch.float32)
    frames = x.shape[0] * x.shape[1]
    TOKENS_BACKWARD(
        _token_grid(frames, grad_tokens.shape[2]),
        grad=grad_tokens,
        cells=cells,
        bias=bias.contiguous(),
        grad_inner=grad_inner,
        frames=frames,
        width=grad_tokens.shape[2],
        outputs=weight.shape[0],
        **window_constants(height, width, pool),
    )
    return projection_gradients(grad_inner, x, weight, bias, height, width, pool)


def projection_gradients(
    grad_inner: Tensor, x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias from that before the activation, (B, T, S*P*P) in float32."""
    batch, frames, tokens, channels = x.shape
    outputs = weight.shape[0]
    rows = batch * frames * tokens
    grids = reach_constants(height, width, pool)

    grad_x = x.new_empty(x.shape)
    FRAMES_GRADIENT(
        lambda tiles: (cdiv(rows, tiles["BLOCK_R"]), cdiv(channels, tiles["BLOCK_C"])),
        grad_inner=grad_inner,
        weight=weight.contiguous(),
        grad_x=grad_x,
        rows=rows,
        channels=channels,
        outputs=outputs,
        **grids,
    )
    run = max(LEAST_RUN, cdiv(rows, RUNS))
    runs = cdiv(rows, run)
    partials = x.new_empty(runs, outputs * channels + outputs, dtype=torch.float32)
    WEIGHT_GRADIENT(
        lambda tiles: (runs, cdiv(channels, tiles["BLOCK_C"]), cdiv(outputs, tiles["BLOCK_S"])),
        grad_inner=grad_inner,
        x=x,
        partials=partials,
        rows=rows,
        run=run,
        frames=frames,
        tokens=tokens,
        channels=channels,
        outputs=outputs,
        **frame_strides(x),
        **grids,
    )
    grad_weight, grad_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    sum_partials(partials, (grad_weight, grad_bias))
    return grad_x, grad_weight, grad_bias
