"""Triton kernels of ``split_index``.

Two launches forward: :data:`frame_tokens.PROJECT_CELLS` reads x once and leaves S numbers a cell, and one
program per clip and group does the rest on chip: pool, bias, GELU, correlation, softmax, offsets. The tokens
are never written. Both groups of a clip compute the same correlation: a few thousand products, cheaper than
a launch to share them.

Backward starts from the correlation: one program per clip and group goes through softmax and offsets, one
per clip and run of tokens through correlation and GELU, then the two products of frame_tokens. The offset
weights' gradients are sums over clips in order. Nothing is added atomically.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._functions import gelu, gelu_slope, tanh
from ifdd_kernels.triton._pooling import window_constants
from ifdd_kernels.triton._runtime import (
    OLDER_COMPILER,
    Arguments,
    Kernel,
    cdiv,
    contiguous_channels,
    next_power_of_2,
)
from ifdd_kernels.triton._tuning import Config
from ifdd_kernels.triton.frame_correlation import symmetric_gradient
from ifdd_kernels.triton.frame_tokens import project_cells, projection_gradients, token_inputs


@triton.jit
def split_index_kernel(
    cells, bias, static_weight, dynamic_weight, static_index, dynamic_index, correlation,
    frames, outputs, width, scale, reach,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (clip, group): indexes (B, T/2) of its group; the static one writes M (B, T, T)."""
    clip = tl.program_id(0)
    t = tl.arange(0, BLOCK_T)
    total = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for start in range(0, width, BLOCK_D):
        token = start + tl.arange(0, BLOCK_D)
        before = token_inputs(
            cells, bias, clip * frames + t, t < frames, token, outputs,
            HEIGHT, WIDTH, POOL, WINDOW_H, WINDOW_W,
        )  # fmt: skip
        z = tl.where((t < frames)[:, None] & (token < width)[None, :], gelu(before), 0.0)
        total = tl.dot(z, tl.trans(z), total, input_precision="tf32x3")
    total *= scale
    if tl.program_id(1) == 0:
        pair = (t < frames)[:, None] & (t < frames)[None, :]
        base = correlation + clip.to(tl.int64) * frames * frames
        tl.store(base + t[:, None] * frames + t[None, :], total, mask=pair)
        _offsets(static_weight, static_index, total, clip, t, frames, reach, 0)
    else:
        _offsets(dynamic_weight, dynamic_index, -total, clip, t, frames, reach, 1)


@triton.jit
def _row_softmax(scores, t, frames):
    """Softmax over the last axis of one clip's (T, T) scores; zero outside."""
    scores = tl.where((t < frames)[None, :], scores, -float("inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    pair = (t < frames)[:, None] & (t < frames)[None, :]
    return tl.where(pair, exponentials / tl.sum(exponentials, 1)[:, None], 0.0)


@triton.jit
def _offset_weight(weight, k, t, frames):
    """Row k of the (T/2, T*T) offset weight as (T, T)."""
    pair = (t < frames)[:, None] & (t < frames)[None, :]
    base = weight + k.to(tl.int64) * frames * frames
    return tl.load(base + t[:, None] * frames + t[None, :], mask=pair, other=0.0).to(tl.float32)


@triton.jit
def _offsets(weight, index, scores, clip, t, frames, reach, first):
    """Index k = 2 k + first + reach tanh(W_k . softmax(scores)) of one clip."""
    attention = _row_softmax(scores, t, frames)
    for step in range(frames // 2):
        k = tl.full((), step, tl.int32)
        logit = tl.sum(tl.sum(attention * _offset_weight(weight, k, t, frames), 1), 0)
        value = (2 * k + first).to(tl.float32) + reach * tanh(logit)
        tl.store(index + clip * (frames // 2) + k, value)


@triton.jit
def offsets_backward_kernel(
    grad_static, grad_dynamic, static_weight, dynamic_weight, correlation,
    attention, inner, grad_scores, frames, reach,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Program (clip, group): its part of the gradient of M, (B, 2, T, T), and what the weights' need.

    That is the softmax (B, 2, T, T) and inner = r g (1 - tanh^2), (B, 2, T/2).
    """
    clip = tl.program_id(0)
    if tl.program_id(1) == 0:
        _offsets_backward(
            grad_static, static_weight, correlation, attention, inner, grad_scores,
            clip, 0, 1.0, frames, reach, BLOCK_T,
        )  # fmt: skip
    else:
        _offsets_backward(
            grad_dynamic, dynamic_weight, correlation, attention, inner, grad_scores,
            clip, 1, -1.0, frames, reach, BLOCK_T,
        )  # fmt: skip


@triton.jit
def _offsets_backward(
    grad, weight, correlation, attention_out, inner_out, grad_scores, clip, group, sign, frames, reach,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    t = tl.arange(0, BLOCK_T)
    pair = (t < frames)[:, None] & (t < frames)[None, :]
    place = t[:, None] * frames + t[None, :]
    base = correlation + clip.to(tl.int64) * frames * frames
    scores = sign * tl.load(base + place, mask=pair, other=0.0)
    attention = _row_softmax(scores, t, frames)
    grad_attention = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    half = frames // 2
    for step in range(half):
        k = tl.full((), step, tl.int32)
        row = _offset_weight(weight, k, t, frames)
        offset = tanh(tl.sum(tl.sum(attention * row, 1), 0))
        g = tl.load(grad + clip * half + k).to(tl.float32)
        inner = reach * g * (1.0 - offset * offset)
        tl.store(inner_out + (clip * 2 + group) * half + k, inner)
        grad_attention += inner * row
    mean = tl.sum(grad_attention * attention, 1)
    first = (clip * 2 + group).to(tl.int64) * frames * frames
    tl.store(attention_out + first + place, attention, mask=pair)
    tl.store(grad_scores + first + place, sign * attention * (grad_attention - mean[:, None]), mask=pair)


@triton.jit
def offset_weights_gradient_kernel(
    inner, attention, grad_static_weight, grad_dynamic_weight, clips, half, pairs,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dW = sum over clips of inner attention^T, (T/2, T*T): one program a tile and group."""
    group = tl.program_id(2)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    pair = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_K, BLOCK_P), tl.float32)
    for clip in range(clips):
        row = tl.full((), 2, tl.int64) * clip + group
        left = tl.load(inner + row * half + k, mask=k < half, other=0.0)
        right = tl.load(attention + row * pairs + pair, mask=pair < pairs, other=0.0)
        total += left[:, None] * right[None, :]
    inside = (k < half)[:, None] & (pair < pairs)[None, :]
    first = k.to(tl.int64) * pairs
    if group == 0:
        target = (grad_static_weight + first)[:, None] + pair[None, :]
        tl.store(target, total.to(grad_static_weight.dtype.element_ty), mask=inside)
    else:
        target = (grad_dynamic_weight + first)[:, None] + pair[None, :]
        tl.store(target, total.to(grad_dynamic_weight.dtype.element_ty), mask=inside)


@triton.jit
def split_tokens_backward_kernel(
    grad_correlation, grad_scores, cells, bias, grad_inner, frames, outputs, width, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad_inner (B, T, S*P*P) through M = scale z z^T and z = GELU(h).

    Program (clip, run of tokens, run of frames).
    """
    clip = tl.program_id(0)
    token = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    pairs = clip.to(tl.int64) * frames * frames
    grad_z = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for start in range(0, frames, BLOCK_T):
        u = start + tl.arange(0, BLOCK_T)
        symmetric = symmetric_gradient(grad_correlation + pairs, t, u, frames)
        symmetric += symmetric_gradient(grad_scores + 2 * pairs, t, u, frames)
        symmetric += symmetric_gradient(grad_scores + 2 * pairs + frames * frames, t, u, frames)
        other = token_inputs(
            cells, bias, clip * frames + u, u < frames, token, outputs,
            HEIGHT, WIDTH, POOL, WINDOW_H, WINDOW_W,
        )  # fmt: skip
        z = tl.where((u < frames)[:, None] & (token < width)[None, :], gelu(other), 0.0)
        grad_z = tl.dot(symmetric, z, grad_z, input_precision="tf32x3")
    before = token_inputs(
        cells, bias, clip * frames + t, t < frames, token, outputs, HEIGHT, WIDTH, POOL, WINDOW_H, WINDOW_W
    )
    target = (grad_inner + (clip.to(tl.int64) * frames + t) * width)[:, None] + token[None, :]
    inside = (t < frames)[:, None] & (token < width)[None, :]
    tl.store(target, grad_z * scale * gelu_slope(before), mask=inside)


def _clip_tile(arguments: Arguments) -> int:
    """The frames of a clip, at least what a tensor core takes."""
    return max(16, next_power_of_2(arguments["frames"]))


def _pair_warps(frames: int) -> int:
    """Warps that keep three (T, T) tiles of float32 in registers."""
    return 2 if frames <= 16 else min(16, frames // 8)


def _clip_configs(arguments: Arguments) -> Sequence[Config]:
    frames = _clip_tile(arguments)
    short = 32 if OLDER_COMPILER else 64
    width = short if frames <= 16 else 32 if frames <= 64 else 16
    return [Config({"BLOCK_T": frames, "BLOCK_D": width}, min(8, _pair_warps(frames)), num_stages=1)]


def _token_configs(arguments: Arguments) -> Sequence[Config]:
    frames = min(32, _clip_tile(arguments))
    warps = max(4 if OLDER_COMPILER else 2, _pair_warps(frames))
    return [Config({"BLOCK_T": frames, "BLOCK_D": 32}, warps, num_stages=1)]


def _offset_configs(arguments: Arguments) -> Sequence[Config]:
    frames = next_power_of_2(arguments["frames"])
    return [Config({"BLOCK_T": frames}, _pair_warps(frames), num_stages=1)]


def _interpreted(arguments: Arguments) -> dict[str, int]:
    return {"BLOCK_T": _clip_tile(arguments), "BLOCK_D": min(512, next_power_of_2(arguments["width"]))}


def _interpreted_tokens(arguments: Arguments) -> dict[str, int]:
    return {**_interpreted(arguments), "BLOCK_T": min(16, _clip_tile(arguments))}


SPLIT_INDEX = Kernel(split_index_kernel, _clip_configs, interpreter=_interpreted)
OFFSETS_BACKWARD = Kernel(offsets_backward_kernel, _offset_configs)
SPLIT_TOKENS_BACKWARD = Kernel(split_tokens_backward_kernel, _token_configs, interpreter=_interpreted_tokens)
OFFSET_WEIGHTS_GRADIENT = Kernel(
    offset_weights_gradient_kernel,
    configs=lambda a: [
        Config({"BLOCK_K": min(16, next_power_of_2(a["half"])), "BLOCK_P": 128}, num_warps=4, num_stages=2)
    ],
    interpreter=lambda a: {
        "BLOCK_K": next_power_of_2(a["half"]),
        "BLOCK_P": min(4096, next_power_of_2(a["pairs"])),
    },
)


def forward(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.split_index``; channels that are not dense cost a copy of x."""
    batch, frames, _, channels = x.shape
    static_index = x.new_empty(batch, frames // 2, dtype=torch.float32)
    dynamic_index = x.new_empty(batch, frames // 2, dtype=torch.float32)
    correlation = x.new_empty(batch, frames, frames, dtype=torch.float32)
    SPLIT_INDEX(
        lambda _: (batch, 2),
        cells=project_cells(contiguous_channels(x), token_weight),
        bias=token_bias.contiguous(),
        static_weight=static_weight.contiguous(),
        dynamic_weight=dynamic_weight.contiguous(),
        static_index=static_index,
        dynamic_index=dynamic_index,
        correlation=correlation,
        frames=frames,
        outputs=token_weight.shape[0],
        width=token_weight.shape[0] * pool * pool,
        scale=1.0 / channels,
        reach=reach,
        **window_constants(height, width, pool),
    )
    return static_index, dynamic_index, correlation


def backward(
    grad_static_index: Tensor,
    grad_dynamic_index: Tensor,
    grad_correlation: Tensor,
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    correlation: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``torch.ops.ifdd.split_index_backward``."""
    x = contiguous_channels(x)
    batch, frames, _, channels = x.shape
    half, pairs = frames // 2, frames * frames
    attention = correlation.new_empty(batch, 2, pairs)
    inner = correlation.new_empty(batch, 2, half)
    grad_scores = correlation.new_empty(batch, 2, pairs)
    OFFSETS_BACKWARD(
        lambda _: (batch, 2),
        grad_static=grad_static_index.contiguous(),
        grad_dynamic=grad_dynamic_index.contiguous(),
        static_weight=static_weight.contiguous(),
        dynamic_weight=dynamic_weight.contiguous(),
        correlation=correlation.contiguous(),
        attention=attention,
        inner=inner,
        grad_scores=grad_scores,
        frames=frames,
        reach=reach,
    )
    grad_static_weight = static_weight.new_empty(static_weight.shape)
    grad_dynamic_weight = dynamic_weight.new_empty(dynamic_weight.shape)
    OFFSET_WEIGHTS_GRADIENT(
        lambda tiles: (cdiv(half, tiles["BLOCK_K"]), cdiv(pairs, tiles["BLOCK_P"]), 2),
        inner=inner,
        attention=attention,
        grad_static_weight=grad_static_weight,
        grad_dynamic_weight=grad_dynamic_weight,
        clips=batch,
        half=half,
        pairs=pairs,
    )
    tokens = token_weight.shape[0] * pool * pool
    grad_inner = correlation.new_empty(batch, frames, tokens)
    SPLIT_TOKENS_BACKWARD(
        lambda tiles: (batch, cdiv(tokens, tiles["BLOCK_D"]), cdiv(frames, tiles["BLOCK_T"])),
        grad_correlation=grad_correlation.contiguous(),
        grad_scores=grad_scores,
        cells=project_cells(x, token_weight),
        bias=token_bias.contiguous(),
        grad_inner=grad_inner,
        frames=frames,
        outputs=token_weight.shape[0],
        width=tokens,
        scale=1.0 / channels,
        **window_constants(height, width, pool),
    )
    grad_x, grad_token_weight, grad_token_bias = projection_gradients(
        grad_inner, x, token_weight, token_bias, height, width, pool
    )
    return grad_x, grad_token_weight, grad_token_bias, grad_static_weight, grad_dynamic_weight
