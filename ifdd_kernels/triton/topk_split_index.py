"""Triton kernels of ``topk_split_index``: partial scores per pooled cell, then ranks, no sort and no host.

A frame is static if fewer than T/2 frames rank above it; a running count over the frames in time is its
place in its group, so both groups come out in the order of time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._functions import window_start, window_stop
from ifdd_kernels.triton._runtime import Arguments, Kernel, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._tuning import Config
from ifdd_kernels.triton.frame_tokens import frame_strides


@triton.jit
def cell_scores_kernel(
    x, scores, frames, channels, stride_b, stride_t, stride_n,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (clip, pooled cell): <z_t, mean_u z_u> over its channels, scores (B, P*P, T)."""
    clip = tl.program_id(0).to(tl.int64)
    y, column = tl.program_id(1) // POOL, tl.program_id(1) % POOL
    top, bottom = window_start(y, HEIGHT, POOL), window_stop(y, HEIGHT, POOL)
    left, right = window_start(column, WIDTH, POOL), window_stop(column, WIDTH, POOL)
    area = ((bottom - top) * (right - left)).to(tl.float32)
    t = tl.arange(0, BLOCK_T)
    base = (x + clip * stride_b + t.to(tl.int64) * stride_t)[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (t < frames)[:, None] & (c < channels)[None, :]
        z = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for i in range(top, bottom):
            for j in range(left, right):
                cell = tl.full((), 1, tl.int64) * (i * WIDTH + j) * stride_n
                z += tl.load(base + cell + c[None, :], mask=inside, other=0.0).to(tl.float32)
        z /= area
        total += z * (tl.sum(z, 0) / frames)[None, :]
    place = (clip * (POOL * POOL) + tl.program_id(1)) * frames + t
    tl.store(scores + place, tl.sum(total, 1), mask=t < frames)


@triton.jit
def rank_frames_kernel(
    scores, static_index, dynamic_index, frames, channels, cells,
    PRIOR: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program (clip): both groups (B, T/2), int64, from scores (B, P*P, T)."""
    clip = tl.program_id(0).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_P, BLOCK_T), tl.float32)
    for start in range(0, cells, BLOCK_P):
        cell = start + tl.arange(0, BLOCK_P)
        row = (scores + (clip * cells + cell) * frames)[:, None] + t[None, :]
        total += tl.load(row, mask=(cell < cells)[:, None] & (t < frames)[None, :], other=0.0)
    score = tl.sum(total, 0) / channels
    if PRIOR:
        score += (t % 2 == 0).to(tl.float32)
    # PyTorch's order: numbers descending, NaN above all of them, equals by time.
    own, other = score[:, None], score[None, :]
    own_nan, other_nan = own != own, other != other
    above = (other > own) | (other_nan & (own == own))
    level = (other == own) | (other_nan & own_nan)
    before = above | (level & (t[None, :] < t[:, None]))
    rank = tl.sum((before & (t < frames)[None, :]).to(tl.int32), 1)
    half = frames // 2
    static = (rank < half) & (t < frames)
    dynamic = (rank >= half) & (t < frames)
    static_place = tl.cumsum(static.to(tl.int32), 0) - 1
    dynamic_place = tl.cumsum(dynamic.to(tl.int32), 0) - 1
    tl.store(static_index + clip * half + static_place, t.to(tl.int64), mask=static)
    tl.store(dynamic_index + clip * half + dynamic_place, t.to(tl.int64), mask=dynamic)


def _score_configs(arguments: Arguments) -> Sequence[Config]:
    frames, channels = next_power_of_2(arguments["frames"]), next_power_of_2(arguments["channels"])
    # Four tiles of float32 per program; 4096 elements over four warps are 32 registers each.
    tiles = [(4096 // min(frames, 128), 4), (2048 // min(frames, 128), 2)]
    return [
        Config({"BLOCK_T": frames, "BLOCK_C": max(1, min(width, channels))}, warps, num_stages=1)
        for width, warps in tiles
    ]


SCORES = Kernel(
    cell_scores_kernel,
    _score_configs,
    key=("frames", "channels"),
    interpreter=lambda a: {
        "BLOCK_T": next_power_of_2(a["frames"]),
        "BLOCK_C": min(1024, next_power_of_2(a["channels"])),
    },
)
RANKS = Kernel(
    rank_frames_kernel,
    configs=lambda a: [
        Config(
            {"BLOCK_T": next_power_of_2(a["frames"]), "BLOCK_P": 16}, num_warps=1 if a["frames"] <= 16 else 8
        )
    ],
)


def forward(x: Tensor, height: int, width: int, pool: int, order_prior: bool) -> tuple[Tensor, Tensor]:
    """``torch.ops.ifdd.topk_split_index``; channels that are not dense cost a copy of x."""
    x = contiguous_channels(x)
    batch, frames, _, channels = x.shape
    cells = pool * pool
    scores = x.new_empty(batch, cells, frames, dtype=torch.float32)
    SCORES(
        lambda _: (batch, cells),
        x=x,
        scores=scores,
        frames=frames,
        channels=channels,
        **frame_strides(x),
        HEIGHT=height,
        WIDTH=width,
        POOL=pool,
    )
    static_index = x.new_empty(batch, frames // 2, dtype=torch.int64)
    dynamic_index = x.new_empty(batch, frames // 2, dtype=torch.int64)
    RANKS(
        lambda _: (batch,),
        scores=scores,
        static_index=static_index,
        dynamic_index=dynamic_index,
        frames=frames,
        channels=channels,
        cells=cells,
        PRIOR=order_prior,
    )
    return static_index, dynamic_index
