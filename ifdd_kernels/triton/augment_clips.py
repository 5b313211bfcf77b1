"""Triton kernels of ``augment_clips``: the sums that contrast needs, then the clips.

A program resizes a tile of a frame from its bytes, tap by tap. Both kernels do: reading the bytes twice
moves less than writing the resized frame and reading it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton._runtime import Arguments, Kernel, cdiv
from ifdd_kernels.triton._tuning import Config


@triton.jit
def first_tap(place, length, size):
    """First pixel of a crop's axis with a weight in pixel ``place`` of the result."""
    reach = 2 * tl.maximum(length, size)
    # Pixels further left than half the reach have none. Rounded down: what is divided is never negative.
    shifted = (2 * place + 1) * length - reach - size + 2 * size * reach
    return tl.maximum(shifted // (2 * size) - reach + 1, 0)


@triton.jit
def tap_weight(pixel, place, length, size):
    """Weight of a pixel, not normalised: an integer, zero outside the crop."""
    distance = tl.abs((2 * pixel + 1) * size - (2 * place + 1) * length)
    weight = tl.maximum(2 * tl.maximum(length, size) - distance, 0)
    return tl.where(pixel < length, weight, 0).to(tl.float32)


@triton.jit
def total_weight(place, length, size, taps):
    """Sum of the weights in pixel ``place`` of the result."""
    total = tl.zeros_like(place).to(tl.float32)
    first = first_tap(place, length, size)
    for k in range(taps):
        total += tap_weight(first + k, place, length, size)
    return total


@triton.jit
def clamped(x):
    """Within [0, 1]; NaN stays NaN."""
    return tl.where(x > 1.0, 1.0, tl.where(x < 0.0, 0.0, x))


@triton.jit
def luma(red, green, blue):
    """Luma of pixels."""
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def turned_hue(red, green, blue, sixths):
    """Pixels with their hue turned, as in ``csrc/cpu/kernels/augment_clips.cpp``."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    opposite = tl.where(value == red, green - blue, tl.where(value == green, blue - red, red - green))
    base = tl.where(value == red, 0.0, tl.where(value == green, 2.0, 4.0))
    h = base + opposite / tl.where(chroma == 0.0, 1.0, chroma) + sixths
    h = tl.where(h < 0.0, h + 6.0, h)
    h = tl.where(h >= 6.0, h - 6.0, h)
    red = value - chroma * (1.0 - clamped(tl.abs(h - 3.0) - 1.0))
    green = value - chroma * (1.0 - clamped(2.0 - tl.abs(h - 2.0)))
    blue = value - chroma * (1.0 - clamped(2.0 - tl.abs(h - 4.0)))
    return red, green, blue


@triton.jit
def is_valid(crop, strengths, steps, clip, height, width):
    """Whether the crop is inside the frame, strengths are finite and steps known, none taken twice."""
    top, left = tl.load(crop + 4 * clip), tl.load(crop + 4 * clip + 1)
    rows, columns = tl.load(crop + 4 * clip + 2), tl.load(crop + 4 * clip + 3)
    # In this order nothing overflows.
    valid = (top >= 0) & (left >= 0) & (rows >= 1) & (columns >= 1) & (rows <= height) & (columns <= width)
    valid = valid & (top <= height - rows) & (left <= width - columns)
    for i in range(4):
        step, strength = tl.load(steps + 4 * clip + i), tl.load(strengths + 4 * clip + i).to(tl.float32)
        valid = valid & (step >= -1) & (step <= 3) & (strength - strength == 0.0)
        for j in range(i):
            valid = valid & ((step != tl.load(steps + 4 * clip + j)) | (step == -1))
    return valid


@triton.jit
def contrast_place(steps, clip):
    """Number of steps before contrast; 4 without it."""
    place = tl.full((), 4, tl.int32)
    for i in range(4):
        place = tl.where(tl.load(steps + 4 * clip + i) == 1, tl.minimum(place, i), place)
    return place


@triton.jit
def resized(frames, crop, flip, clip, frame, y, x, height, width, size):
    """Red, green and blue of pixels (y, x) of a resized frame, whose crop is valid."""
    top, left = tl.load(crop + 4 * clip).to(tl.int32), tl.load(crop + 4 * clip + 1).to(tl.int32)
    rows, columns = tl.load(crop + 4 * clip + 2).to(tl.int32), tl.load(crop + 4 * clip + 3).to(tl.int32)
    flipped = tl.load(flip + clip) != 0
    left = tl.where(flipped, width - left - columns, left)
    x = tl.where(flipped, size - 1 - x, x)
    base = frames + frame * height * width * 3
    row_taps = (2 * tl.maximum(rows, size) + size - 1) // size
    column_taps = (2 * tl.maximum(columns, size) + size - 1) // size
    first_row, first_column = first_tap(y, rows, size), first_tap(x, columns, size)
    red = tl.zeros((y.shape[0], x.shape[1]), tl.float32)
    green, blue = red, red
    for i in range(row_taps):
        row = first_row + i
        row_weight = tap_weight(row, y, rows, size)
        line = (top + tl.minimum(row, rows - 1)).to(tl.int64) * width
        red_row = tl.zeros_like(red)
        green_row, blue_row = red_row, red_row
        for j in range(column_taps):
            column = first_column + j
            weight = tap_weight(column, x, columns, size)
            pixel = base + 3 * (line + left + tl.minimum(column, columns - 1))
            red_row += weight * tl.load(pixel).to(tl.float32)
            green_row += weight * tl.load(pixel + 1).to(tl.float32)
            blue_row += weight * tl.load(pixel + 2).to(tl.float32)
        red += row_weight * red_row
        green += row_weight * green_row
        blue += row_weight * blue_row
    weights = total_weight(y, rows, size, row_taps) * total_weight(x, columns, size, column_taps)
    scale = 1.0 / (255.0 * weights)
    return red * scale, green * scale, blue * scale


@triton.jit
def after_steps(red, green, blue, strengths, steps, clip, begin, end, mean):
    """Pixels after the steps [begin, end) of a clip."""
    for i in range(begin, end):
        step = tl.load(steps + 4 * clip + i)
        strength = tl.load(strengths + 4 * clip + tl.maximum(step, 0)).to(tl.float32)
        if step == 3:
            red, green, blue = turned_hue(red, green, blue, 6.0 * (strength - tl.floor(strength)))
        elif step >= 0:
            other = tl.where(step == 0, 0.0, tl.where(step == 1, mean, luma(red, green, blue)))
            rest = (1.0 - strength) * other
            red = clamped(strength * red + rest)
            green = clamped(strength * green + rest)
            blue = clamped(strength * blue + rest)
    return red, green, blue


@triton.jit
def contrast_sums_kernel(
    frames, crop, flip, strengths, steps, sums, length, height, width, size, tiles,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Program (frame, tile): its sum of the luma that contrast takes the mean of, sums (B * T, tiles)."""
    frame = tl.program_id(0).to(tl.int64)
    tile, across = tl.program_id(1), tl.cdiv(size, BLOCK_X)
    clip = frame // length
    y = (tile // across * BLOCK_Y + tl.arange(0, BLOCK_Y))[:, None]
    x = (tile % across * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
    contrast = contrast_place(steps, clip)
    if is_valid(crop, strengths, steps, clip, height, width) & (contrast < 4):
        red, green, blue = resized(frames, crop, flip, clip, frame, tl.minimum(y, size - 1),
                                   tl.minimum(x, size - 1), height, width, size)  # fmt: skip
        red, green, blue = after_steps(red, green, blue, strengths, steps, clip, 0, contrast, 0.0)
        inside = (y < size) & (x < size)
        total = tl.sum(tl.sum(tl.where(inside, luma(red, green, blue), 0.0), 1), 0)
        tl.store(sums + frame * tiles + tile, total)


@triton.jit
def augment_clips_kernel(
    frames, crop, flip, strengths, steps, sums, clips, length, height, width, size, tiles,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_SUMS: tl.constexpr,
):  # fmt: skip
    """Program (frame, tile): the tile of a frame of clips (B, 3, T, S, S)."""
    frame = tl.program_id(0).to(tl.int64)
    tile, across = tl.program_id(1), tl.cdiv(size, BLOCK_X)
    clip, moment = frame // length, frame % length
    y = (tile // across * BLOCK_Y + tl.arange(0, BLOCK_Y))[:, None]
    x = (tile % across * BLOCK_X + tl.arange(0, BLOCK_X))[None, :]
    inside = (y < size) & (x < size)
    red = tl.full((BLOCK_Y, BLOCK_X), float("nan"), tl.float32)
    green, blue = red, red
    if is_valid(crop, strengths, steps, clip, height, width):
        mean = tl.zeros((), tl.float32)
        if contrast_place(steps, clip) < 4:
            total = tl.zeros((BLOCK_SUMS,), tl.float32)
            for start in range(0, tiles, BLOCK_SUMS):
                place = start + tl.arange(0, BLOCK_SUMS)
                total += tl.load(sums + frame * tiles + place, mask=place < tiles, other=0.0)
            mean = tl.sum(total, 0) / size / size
        red, green, blue = resized(frames, crop, flip, clip, frame, tl.minimum(y, size - 1),
                                   tl.minimum(x, size - 1), height, width, size)  # fmt: skip
        red, green, blue = after_steps(red, green, blue, strengths, steps, clip, 0, 4, mean)
    plane = tl.full((), 1, tl.int64) * size * size
    out = clips + (3 * clip * length + moment) * plane + y * size + x
    tl.store(out, clamped(red).to(clips.dtype.element_ty), mask=inside)
    tl.store(out + length * plane, clamped(green).to(clips.dtype.element_ty), mask=inside)
    tl.store(out + 2 * length * plane, clamped(blue).to(clips.dtype.element_ty), mask=inside)


#: A tile of the result; both kernels and the room of their sums share it.
TILE = (8, 32)


def _configs(_: Arguments) -> Sequence[Config]:
    return [Config({"BLOCK_Y": TILE[0], "BLOCK_X": TILE[1]}, num_warps=4)]


SUMS = Kernel(contrast_sums_kernel, _configs, key=("size",))
CLIPS = Kernel(
    augment_clips_kernel,
    lambda a: [Config({**config.tiles, "BLOCK_SUMS": 128}, config.num_warps) for config in _configs(a)],
    key=("size",),
)


def forward(
    strengths: Tensor, frames: Tensor, crop: Tensor, flip: Tensor, steps: Tensor, size: int
) -> Tensor:
    """``torch.ops.ifdd.augment_clips``; arguments that are not contiguous are copied."""
    batch, length, height, width, _ = frames.shape
    tiles = cdiv(size, TILE[0]) * cdiv(size, TILE[1])
    sums = strengths.new_empty(batch * length, tiles, dtype=torch.float32)
    clips = strengths.new_empty(batch, 3, length, size, size)
    given: dict[str, Any] = {
        "frames": frames.contiguous(),
        "crop": crop.contiguous(),
        "flip": flip.contiguous(),
        "strengths": strengths.contiguous(),
        "steps": steps.contiguous(),
        "sums": sums,
        "length": length,
        "height": height,
        "width": width,
        "size": size,
        "tiles": tiles,
    }
    SUMS(lambda _: (batch * length, tiles), **given)
    CLIPS(lambda _: (batch * length, tiles), clips=clips, **given)
    return clips
