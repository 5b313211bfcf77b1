"""Triton kernels of ``split_frames``: both groups and their norms in one launch, backward without atomics.

Forward: a program takes rows (clip, position) and a run of output frames, and reads two frames an output;
the T rows of a position stay in the first-level cache between outputs.

Backward: what needs sums over channels comes first, one pass over the output rows that leaves two numbers a
row for the norm, one for the index, and partial sums of the norms' gradients. dx is then elementwise in the
channels: a program keeps the gradient of a run of input frames on chip and adds up the output frames that
touch it, so that each dx row is written once and nothing is added atomically.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._sums import sum_partials
from ifdd_kernels.triton._tuning import Config
from ifdd_kernels.triton.frame_tokens import frame_strides


@triton.jit
def frame_position(index, last, excess, shift):
    """(whole, rest, inside) of positions p = index (1 + excess) - shift, ``last`` = T - 1 as a float.

    p = whole + rest with rest near [-1, 2): what is added to the index is small, and so are its
    roundings. As one product p would carry those of a number of the size of T. ``inside``: p is
    strictly between 0 and T - 1; where it is not, whole + rest is the nearer end.
    """
    # Beyond these the position is clamped anyway; an infinite index would have no rest.
    index = tl.clamp(index, -1.0, last + 1.0, propagate_nan=tl.PropagateNan.ALL)
    whole = tl.floor(index)
    rest = (index - whole) + index * excess - shift
    below, above = whole + rest <= 0.0, whole + rest >= last
    whole = tl.where(below, 0.0, tl.where(above, last, whole))
    return whole, tl.where(below | above, 0.0, rest), (below | above) == 0


@triton.jit
def sample_place(index, frames, last, excess, shift, FLOATING: tl.constexpr):
    """(lower frame, upper frame, fraction) of indexes.

    What is no position, NaN or a frame number out of range, samples NaN: memory is read at a clamped frame.
    """
    if FLOATING:
        whole, rest, _ = frame_position(index, last, excess, shift)
        step = tl.floor(rest)
        fraction = rest - step
        lower = tl.minimum(tl.maximum((whole + step).to(tl.int32), 0), frames - 1)
        upper = tl.minimum(lower + 1, frames - 1)
    else:
        inside = (index >= 0) & (index < frames)
        lower = tl.where(inside, index, 0).to(tl.int32)
        upper = lower
        fraction = tl.where(inside, 0.0, float("nan"))
    return lower, upper, fraction


@triton.jit
def _sample_group(
    x, index, weight, bias, out, stats, rows, row, clip, token, begin, end, count, stats_first, stats_count,
    frames, tokens, channels, last, excess, shift, eps, stride_t,
    FLOATING: tl.constexpr, NORM: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Output frames begin..end-1 of one group; ``x`` points to the rows of the positions' first frames."""
    c = tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (c < channels)[None, :]
    for k in range(begin, end):
        place = tl.load(index + clip * count + k, mask=row < rows, other=0)
        lower, upper, fraction = sample_place(place, frames, last, excess, shift, FLOATING)
        y = tl.load((x + lower.to(tl.int64) * stride_t)[:, None] + c[None, :], mask=inside, other=0.0)
        y = y.to(tl.float32)
        if FLOATING:
            high = tl.load((x + upper.to(tl.int64) * stride_t)[:, None] + c[None, :], mask=inside, other=0.0)
            y = y * (1.0 - fraction)[:, None] + high.to(tl.float32) * fraction[:, None]
        else:
            y += fraction[:, None]
        if NORM:
            mean = tl.sum(tl.where(inside, y, 0.0), 1) / channels
            centred = tl.where(inside, y - mean[:, None], 0.0)
            rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
            scale = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
            offset = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
            y = centred * rstd[:, None] * scale[None, :] + offset[None, :]
            moments = stats + ((clip * stats_count + stats_first + k).to(tl.int64) * tokens + token) * 2
            tl.store(moments, mean, mask=row < rows)
            tl.store(moments + 1, rstd, mask=row < rows)
        target = out + ((clip * count + k).to(tl.int64) * tokens + token) * channels
        tl.store(target[:, None] + c[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sample_frames_kernel(
    x, static_index, dynamic_index, static_weight, static_bias, dynamic_weight, dynamic_bias,
    static_frames, dynamic_frames, stats,
    rows, frames, tokens, channels, static_count, dynamic_count, last, excess, shift, eps,
    stride_b, stride_t, stride_n,
    FLOATING: tl.constexpr, NORM: tl.constexpr,
    BLOCK_R: tl.constexpr, RUN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (rows of B*N, run of the Ks + Kd output frames)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    clip, token = row // tokens, row % tokens
    begin = tl.program_id(1) * RUN
    total = static_count + dynamic_count
    base = x + clip.to(tl.int64) * stride_b + token.to(tl.int64) * stride_n
    _sample_group(
        base, static_index, static_weight, static_bias, static_frames, stats, rows, row, clip, token,
        begin, tl.minimum(begin + RUN, static_count), static_count, 0, total,
        frames, tokens, channels, last, excess, shift, eps, stride_t, FLOATING, NORM, BLOCK_C,
    )  # fmt: skip
    _sample_group(
        base, dynamic_index, dynamic_weight, dynamic_bias, dynamic_frames, stats, rows, row, clip, token,
        tl.maximum(begin - static_count, 0), tl.minimum(begin + RUN - static_count, dynamic_count),
        dynamic_count, static_count, total,
        frames, tokens, channels, last, excess, shift, eps, stride_t, FLOATING, NORM, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _sum_rows(
    grad, x, index, weight, stats, row_means, slopes, norm_partials, begin, end, count, group_first,
    group_count, frames, tokens, channels, last, excess, shift, stride_b, stride_t, stride_n,
    FLOATING: tl.constexpr, NORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows begin..end-1 of one group (B, K, N, C): their sums over C, and those of the norm over the rows."""
    c = tl.arange(0, BLOCK_C)
    weight_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        clip, token = row // (count * tokens), row % tokens
        place = row // tokens % count
        inside = (row < end)[:, None] & (c < channels)[None, :]
        position = tl.load(index + clip * count + place, mask=row < end, other=0)
        lower, upper, fraction = sample_place(position, frames, last, excess, shift, FLOATING)
        base = x + clip.to(tl.int64) * stride_b + token.to(tl.int64) * stride_n
        dy = grad + row.to(tl.int64) * channels
        dy = tl.load(dy[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
        low = tl.load((base + lower.to(tl.int64) * stride_t)[:, None] + c[None, :], mask=inside, other=0.0)
        low = low.to(tl.float32)
        y = low
        if FLOATING:
            high = tl.load(
                (base + upper.to(tl.int64) * stride_t)[:, None] + c[None, :], mask=inside, other=0.0
            ).to(tl.float32)
            y = low * (1.0 - fraction)[:, None] + high * fraction[:, None]
        # Row of the (B, Ks + Kd, N) tensors both groups share.
        shared = (clip * group_count + group_first + place).to(tl.int64) * tokens + token
        if NORM:
            mean = tl.load(stats + 2 * shared, mask=row < end, other=0.0)
            rstd = tl.load(stats + 2 * shared + 1, mask=row < end, other=0.0)
            normalised = tl.where(inside, (y - mean[:, None]) * rstd[:, None], 0.0)
            weight_sum += dy * normalised
            bias_sum += dy
            dy *= tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
            mean_grad = tl.sum(dy, 1) / channels
            mean_product = tl.sum(dy * normalised, 1) / channels
            tl.store(row_means + 2 * shared, mean_grad, mask=row < end)
            tl.store(row_means + 2 * shared + 1, mean_product, mask=row < end)
            dy = rstd[:, None] * (dy - mean_grad[:, None] - normalised * mean_product[:, None])
        if FLOATING:
            slope = tl.sum(tl.where(inside, dy * (high - low), 0.0), 1)
            tl.store(slopes + shared, slope, mask=row < end)
    if NORM:
        tl.store(norm_partials + c, tl.sum(weight_sum, 0), mask=c < channels)
        tl.store(norm_partials + channels + c, tl.sum(bias_sum, 0), mask=c < channels)


@triton.jit
def sum_rows_kernel(
    grad_static, grad_dynamic, x, static_index, dynamic_index, static_weight, dynamic_weight, stats,
    row_means, slopes, norm_partials,
    run, clips, frames, tokens, channels, static_count, dynamic_count, last, excess, shift,
    stride_b, stride_t, stride_n,
    FLOATING: tl.constexpr, NORM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (``run`` output rows, group): every sum over channels or rows that backward needs.

    row_means (B, Ks + Kd, N, 2): means over C of g = dy weight and of g n, n the normalised row. slopes
    (B, Ks + Kd, N): <dy before the norm, x[upper] - x[lower]>. norm_partials (programs, 4, C): sums for
    static weight and bias, dynamic weight and bias.
    """
    part = tl.program_id(0)
    partials = norm_partials + part.to(tl.int64) * 4 * channels
    total = static_count + dynamic_count
    if tl.program_id(1) == 0:
        rows = clips * static_count * tokens
        _sum_rows(
            grad_static, x, static_index, static_weight, stats, row_means, slopes, partials,
            part * run, tl.minimum(part * run + run, rows), static_count, 0, total,
            frames, tokens, channels, last, excess, shift, stride_b, stride_t, stride_n,
            FLOATING, NORM, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    else:
        rows = clips * dynamic_count * tokens
        _sum_rows(
            grad_dynamic, x, dynamic_index, dynamic_weight, stats, row_means, slopes, partials + 2 * channels,
            part * run, tl.minimum(part * run + run, rows), dynamic_count, static_count, total,
            frames, tokens, channels, last, excess, shift, stride_b, stride_t, stride_n,
            FLOATING, NORM, BLOCK_R, BLOCK_C,
        )  # fmt: skip


@triton.jit
def _add_group(
    grad_x, grad, x, index, weight, stats, row_means, clip, token, c, first, count, group_first, group_count,
    frames, tokens, channels, last, excess, shift, stride_t,
    FLOATING: tl.constexpr, NORM: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One group's share of dx of frames first..first+BLOCK_T-1 and channels c at one position."""
    t = first + tl.arange(0, BLOCK_T)
    inside = c < channels
    for k in range(count):
        place = tl.load(index + clip * count + k)
        lower, upper, fraction = sample_place(place, frames, last, excess, shift, FLOATING)
        if (upper >= first) & (lower < first + BLOCK_T):
            output = (clip * count + k) * tokens + token
            dy = tl.load(grad + output * channels + c, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                y = tl.load(x + lower.to(tl.int64) * stride_t + c, mask=inside, other=0.0).to(tl.float32)
                if FLOATING:
                    high = tl.load(x + upper.to(tl.int64) * stride_t + c, mask=inside, other=0.0)
                    y = y * (1.0 - fraction) + high.to(tl.float32) * fraction
                shared = 2 * ((clip * group_count + group_first + k) * tokens + token)
                mean, rstd = tl.load(stats + shared), tl.load(stats + shared + 1)
                mean_grad, mean_product = tl.load(row_means + shared), tl.load(row_means + shared + 1)
                dy *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
                dy = rstd * (dy - mean_grad - (y - mean) * rstd * mean_product)
            if FLOATING:
                share = tl.where(t == lower, 1.0 - fraction, 0.0) + tl.where(t == upper, fraction, 0.0)
            else:
                share = tl.where(t == lower, 1.0, 0.0)
            # A frame that is not used takes no NaN from one that is.
            grad_x += tl.where((share != 0)[:, None], share[:, None] * dy[None, :], 0.0)
    return grad_x


@triton.jit
def sample_backward_kernel(
    grad_static, grad_dynamic, x, static_index, dynamic_index, static_weight, dynamic_weight, stats,
    row_means, grad_x,
    frames, tokens, channels, static_count, dynamic_count, last, excess, shift, stride_b, stride_t, stride_n,
    FLOATING: tl.constexpr, NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (position of a clip, channels, run of input frames): dx = A^T dy, each row written once."""
    clip = (tl.program_id(0) // tokens).to(tl.int64)
    token = tl.program_id(0) % tokens
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(2) * BLOCK_T
    t = first + tl.arange(0, BLOCK_T)
    outputs = static_count + dynamic_count
    base = x + clip * stride_b + token.to(tl.int64) * stride_n
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    total = _add_group(
        total, grad_static, base, static_index, static_weight, stats, row_means, clip, token, c, first,
        static_count, 0, outputs, frames, tokens, channels, last, excess, shift, stride_t,
        FLOATING, NORM, BLOCK_T,
    )  # fmt: skip
    total = _add_group(
        total, grad_dynamic, base, dynamic_index, dynamic_weight, stats, row_means, clip, token, c, first,
        dynamic_count, static_count, outputs, frames, tokens, channels, last, excess, shift, stride_t,
        FLOATING, NORM, BLOCK_T,
    )  # fmt: skip
    target = grad_x + ((clip * frames + t) * tokens + token) * channels
    inside = (t < frames)[:, None] & (c < channels)[None, :]
    tl.store(target[:, None] + c[None, :], total.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def index_gradient_kernel(
    partials, static_index, dynamic_index, grad_static, grad_dynamic,
    clips, tokens, static_count, dynamic_count, last, excess, shift,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """di = dp/di * sum of the partial sums over the positions, zero where p is clamped."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    count = static_count + dynamic_count
    clip, k = row // count, row % count
    total = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in range(0, tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        inside = (row < clips * count)[:, None] & (token < tokens)[None, :]
        base = partials + row.to(tl.int64) * tokens
        total += tl.load(base[:, None] + token[None, :], mask=inside, other=0.0)
    slope = tl.sum(total, 1)
    is_static = (row < clips * count) & (k < static_count)
    is_dynamic = (row < clips * count) & (k >= static_count)
    static_place = clip * static_count + k
    dynamic_place = clip * dynamic_count + k - static_count
    index = tl.load(static_index + static_place, mask=is_static, other=0.0)
    index += tl.load(dynamic_index + dynamic_place, mask=is_dynamic, other=0.0)
    _, _, inside = frame_position(index, last, excess, shift)
    grad = tl.where(inside, (1.0 + excess) * slope, 0.0)
    tl.store(grad_static + static_place, grad, mask=is_static)
    tl.store(grad_dynamic + dynamic_place, grad, mask=is_dynamic)


def _forward_configs(arguments: Arguments) -> Sequence[Config]:
    """One warp and up to 16 bytes a thread a row need no shared memory for the norm's sums."""
    channels = next_power_of_2(arguments["channels"])
    outputs = next_power_of_2(arguments["static_count"] + arguments["dynamic_count"])
    few = arguments["rows"] < 512  # a small batch fills a device only with one program an output frame
    rows = max(1, min(16, 256 // channels))
    warps = max(1, min(8, rows * channels // 512))
    found = dict.fromkeys(
        (run, w) for run in ((1, 2, 4) if few else (outputs, 4, 2)) for w in (warps, max(1, warps // 2))
    )
    return [
        Config({"BLOCK_R": rows, "RUN": min(run, outputs), "BLOCK_C": channels}, num_warps=w, num_stages=1)
        for run, w in found
    ]


def _row_configs(arguments: Arguments) -> Sequence[Config]:
    channels = next_power_of_2(arguments["channels"])
    rows = max(1, min(16, 128 // channels))
    warps = dict.fromkeys(max(1, min(8, rows * channels // numbers)) for numbers in (256, 512))
    return [Config({"BLOCK_R": rows, "BLOCK_C": channels}, num_warps=w, num_stages=1) for w in warps]


def _backward_configs(arguments: Arguments) -> Sequence[Config]:
    """Up to eight input frames a program: 32 or 64 registers a thread for their gradient."""
    channels, frames = next_power_of_2(arguments["channels"]), next_power_of_2(arguments["frames"])
    tiles = dict.fromkeys((min(8, frames), min(c, channels), w) for c, w in ((256, 1), (256, 2), (512, 2)))
    return [Config({"BLOCK_T": t, "BLOCK_C": c}, num_warps=w, num_stages=1) for t, c, w in tiles]


SAMPLE_FRAMES = Kernel(
    sample_frames_kernel,
    _forward_configs,
    key=("channels", "static_count", "dynamic_count"),
    interpreter=lambda a: {
        "BLOCK_R": min(64, next_power_of_2(max(a["rows"], 1))),
        "RUN": next_power_of_2(a["static_count"] + a["dynamic_count"]),
        "BLOCK_C": next_power_of_2(a["channels"]),
    },
)
SUM_ROWS = Kernel(
    sum_rows_kernel,
    _row_configs,
    key=("channels", "static_count", "dynamic_count"),
    interpreter=lambda a: {
        "BLOCK_R": min(64, next_power_of_2(a["run"])),
        "BLOCK_C": next_power_of_2(a["channels"]),
    },
)
SAMPLE_BACKWARD = Kernel(
    sample_backward_kernel,
    _backward_configs,
    key=("frames", "tokens", "channels"),
    interpreter=lambda a: {
        "BLOCK_T": min(8, next_power_of_2(a["frames"])),
        "BLOCK_C": next_power_of_2(a["channels"]),
    },
)
INDEX_GRADIENT = Kernel(
    index_gradient_kernel,
    configs=lambda a: [
        Config({"BLOCK_R": 4, "BLOCK_N": min(256, next_power_of_2(a["tokens"]))}, num_warps=4, num_stages=1)
    ],
    interpreter=lambda a: {"BLOCK_R": 64, "BLOCK_N": min(1024, next_power_of_2(a["tokens"]))},
)


#: Programs a group's output rows are shared among for their sums. Each writes partial sums of two parameters'
#: gradients: together a tenth of the frames at IFDD's size and batch 16.
PROGRAMS = 256
#: Least rows a program, so that a small batch does not write more partial sums than it reads frames.
LEAST_ROWS = 8


def _sampling(frames: int, aligned: bool) -> dict[str, float]:
    """Arguments of :func:`frame_position`."""
    excess, shift = (0.0, 0.0) if aligned or frames < 2 else (1 / (frames - 1), 0.5)
    return {"last": float(frames - 1), "excess": excess, "shift": shift}


def forward(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    eps: float,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.split_frames``; channels that are not dense cost a copy of x.

    A frame number outside 0..T-1 gives a frame of NaN: a device cannot raise without being waited for.
    """
    x = contiguous_channels(x)
    batch, frames, tokens, channels = x.shape
    static_count, dynamic_count = static_index.shape[1], dynamic_index.shape[1]
    outputs = static_count + dynamic_count
    norm = static_norm_weight is not None
    static_frames = x.new_empty(batch, static_count, tokens, channels)
    dynamic_frames = x.new_empty(batch, dynamic_count, tokens, channels)
    stats = x.new_empty((batch, outputs, tokens, 2) if norm else (0,), dtype=torch.float32)
    norms = {
        "static_weight": static_norm_weight,
        "static_bias": static_norm_bias,
        "dynamic_weight": dynamic_norm_weight,
        "dynamic_bias": dynamic_norm_bias,
    }
    rows = batch * tokens
    SAMPLE_FRAMES(
        lambda tiles: (cdiv(rows, tiles["BLOCK_R"]), cdiv(outputs, tiles["RUN"])),
        x=x,
        static_index=static_index.contiguous(),
        dynamic_index=dynamic_index.contiguous(),
        **{name: None if value is None else value.contiguous() for name, value in norms.items()},
        static_frames=static_frames,
        dynamic_frames=dynamic_frames,
        stats=stats,
        rows=rows,
        frames=frames,
        tokens=tokens,
        channels=channels,
        static_count=static_count,
        dynamic_count=dynamic_count,
        eps=eps,
        **_sampling(frames, aligned),
        **frame_strides(x),
        FLOATING=static_index.is_floating_point(),
        NORM=norm,
    )
    return static_frames, dynamic_frames, stats


def backward(
    grad_static_frames: Tensor,
    grad_dynamic_frames: Tensor,
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    stats: Tensor,
    aligned: bool,
) -> tuple[Tensor, ...]:
    """``torch.ops.ifdd.split_frames_backward``."""
    x = contiguous_channels(x)
    batch, frames, tokens, channels = x.shape
    static_count, dynamic_count = static_index.shape[1], dynamic_index.shape[1]
    outputs = static_count + dynamic_count
    floating, norm = static_index.is_floating_point(), static_norm_weight is not None
    static_index, dynamic_index = static_index.contiguous(), dynamic_index.contiguous()
    grad_x = x.new_empty(x.shape)
    sampling = _sampling(frames, aligned)
    arguments: dict[str, Any] = {
        "grad_static": grad_static_frames.contiguous(),
        "grad_dynamic": grad_dynamic_frames.contiguous(),
        "x": x,
        "static_index": static_index,
        "dynamic_index": dynamic_index,
        "static_weight": None if static_norm_weight is None else static_norm_weight.contiguous(),
        "dynamic_weight": None if dynamic_norm_weight is None else dynamic_norm_weight.contiguous(),
        "stats": stats.contiguous(),
        "row_means": torch.empty_like(stats),
        "frames": frames,
        "tokens": tokens,
        "channels": channels,
        "static_count": static_count,
        "dynamic_count": dynamic_count,
        **sampling,
        **frame_strides(x),
        "FLOATING": floating,
        "NORM": norm,
    }
    most_rows = batch * max(static_count, dynamic_count) * tokens
    run = max(LEAST_ROWS, cdiv(most_rows, PROGRAMS))
    programs = cdiv(most_rows, run)
    slopes = x.new_empty(batch, outputs, tokens if floating else 0, dtype=torch.float32)
    norm_partials = x.new_empty(programs if norm else 0, 4 * channels, dtype=torch.float32)
    if norm or floating:
        SUM_ROWS(
            lambda _: (programs, 2),
            **arguments,
            slopes=slopes,
            norm_partials=norm_partials,
            run=run,
            clips=batch,
        )
    SAMPLE_BACKWARD(
        lambda tiles: (
            batch * tokens, cdiv(channels, tiles["BLOCK_C"]), cdiv(frames, tiles["BLOCK_T"])
        ),
        **arguments,
        grad_x=grad_x,
    )  # fmt: skip
    if floating:
        grad_indexes = [torch.empty_like(index) for index in (static_index, dynamic_index)]
        INDEX_GRADIENT(
            lambda tiles: (cdiv(batch * outputs, tiles["BLOCK_R"]),),
            partials=slopes,
            static_index=static_index,
            dynamic_index=dynamic_index,
            grad_static=grad_indexes[0],
            grad_dynamic=grad_indexes[1],
            clips=batch,
            tokens=tokens,
            static_count=static_count,
            dynamic_count=dynamic_count,
            **sampling,
        )
    else:
        grad_indexes = [x.new_empty(0, dtype=torch.float32) for _ in range(2)]
    grad_norms = [
        x.new_empty(0) if weight is None else weight.new_empty(weight.shape)
        for weight in (static_norm_weight, static_norm_weight, dynamic_norm_weight, dynamic_norm_weight)
    ]
    if norm:
        sum_partials(norm_partials, grad_norms)
    return grad_x, *grad_indexes, *grad_norms
