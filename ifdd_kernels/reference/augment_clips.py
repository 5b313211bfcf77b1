"""Definition of ``augment_clips``."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels.reference._common import accumulator

#: Share of red, green and blue in the luma (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
#: The numbers of the colour steps, which are also their columns in ``strengths``.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def augment_clips(
    strengths: Tensor, frames: Tensor, crop: Tensor, flip: Tensor, steps: Tensor, size: int
) -> Tensor:
    """Bytes stand for 0 to 1."""
    wide = accumulator(strengths.dtype)
    if not _has_values(steps) or len(frames) < 2:
        return augment_pixels(frames.to(wide) / 255, crop, flip, strengths, steps, size)
    # One by one: a step holds several results in float32, and the steps of one clip are few.
    parts = zip(
        frames.split(1), crop.split(1), flip.split(1), strengths.split(1), steps.split(1), strict=True
    )
    return torch.cat(
        [
            augment_pixels(clip.to(wide) / 255, box, mirrored, factors, taken, size)
            for clip, box, mirrored, factors, taken in parts
        ]
    )


def augment_pixels(
    pixels: Tensor, crop: Tensor, flip: Tensor, strengths: Tensor, steps: Tensor, size: int
) -> Tensor:
    """The same of floating pixels (B, T, H, W, 3) in [0, 1].

    Both axes are resized by a matrix of weights each; every colour step is a function of a clip.
    """
    height, width = pixels.shape[2:4]
    wide = accumulator(strengths.dtype)
    rows = _resize_weights(crop[:, 0], crop[:, 2], height, size).to(wide)
    columns = _resize_weights(crop[:, 1], crop[:, 3], width, size)
    # The crop lies in the flipped frame.
    columns = torch.where(flip[:, None, None], columns.flip(2), columns).to(wide)
    pixels = torch.einsum("bthwc,bjw->bcthj", pixels.to(wide), columns)
    clips = torch.einsum("bcthj,bih->bctij", pixels, rows)
    strength = strengths.to(wide)[:, :, None, None, None, None].unbind(1)
    adjustments = (_brightness, _contrast, _saturation, _hue)
    for taken in steps[:, :, None, None, None, None].unbind(1):
        for number, adjust in enumerate(adjustments):
            if _has_values(taken) and not (taken == number).any():
                continue
            clips = torch.where(taken == number, adjust(clips, strength[number]), clips)
    invalid = ~_is_valid(crop, strengths, steps, height, width)[:, None, None, None, None]
    return clips.clamp(0, 1).masked_fill(invalid, torch.nan).to(strengths.dtype)


def _has_values(steps: Tensor) -> bool:
    """Whether steps may be looked at: not on a GPU, which would be waited for, nor in a trace."""
    return (
        type(steps) is Tensor
        and steps.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _resize_weights(start: Tensor, length: Tensor, extent: int, size: int) -> Tensor:
    """(B, size, extent), float64: weights of the pixels of an axis in those of the result.

    Triangles as wide as the distance of two pixels of the result, or of the crop if that is more, over the
    pixels of the crop. Twice ``size`` times every distance is an integer, so each weight is rounded once.
    """
    pixel = torch.arange(extent, device=start.device) - start[:, None, None]
    length = length[:, None, None]
    place = torch.arange(size, device=start.device)[None, :, None]
    distance = ((2 * pixel + 1) * size - (2 * place + 1) * length).abs()
    weights = (2 * length.clamp(min=size) - distance).clamp(min=0)
    weights = weights.masked_fill((pixel < 0) | (pixel >= length), 0)
    return weights / weights.sum(2, keepdim=True, dtype=torch.float64)


def _luma(clips: Tensor) -> Tensor:
    red, green, blue = clips.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _brightness(clips: Tensor, factor: Tensor) -> Tensor:
    return (factor * clips).clamp(0, 1)


def _contrast(clips: Tensor, factor: Tensor) -> Tensor:
    mean = _luma(clips).mean((-2, -1), keepdim=True)
    return (factor * clips + (1 - factor) * mean).clamp(0, 1)


def _saturation(clips: Tensor, factor: Tensor) -> Tensor:
    return (factor * clips + (1 - factor) * _luma(clips)).clamp(0, 1)


def _hue(clips: Tensor, shift: Tensor) -> Tensor:
    """The hue is turned; the largest and the smallest of the three channels stay as they are."""
    red, green, blue = clips.unbind(1)
    value = clips.amax(1)
    chroma = value - clips.amin(1)
    divisor = torch.where(chroma == 0, 1, chroma)
    of_green = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, of_green)
    turned = torch.remainder(hue + 6 * torch.remainder(shift.squeeze(1), 1), 6)
    shares = ((turned - 3).abs() - 1, 2 - (turned - 2).abs(), 2 - (turned - 4).abs())
    return torch.stack([value - chroma * (1 - share.clamp(0, 1)) for share in shares], 1)


def _is_valid(crop: Tensor, strengths: Tensor, steps: Tensor, height: int, width: int) -> Tensor:
    """(B,): the crop lies in the frame, strengths are finite, steps are numbers from -1 to 3, none twice."""
    top, left, rows, columns = crop.unbind(1)
    inside = (top >= 0) & (left >= 0) & (rows >= 1) & (columns >= 1)
    inside = inside & (rows <= height - top) & (columns <= width - left)
    known = ((steps >= -1) & (steps <= HUE)).all(1)
    twice = torch.stack([(steps == number).sum(1) > 1 for number in range(HUE + 1)]).any(0)
    return inside & known & ~twice & strengths.isfinite().all(1)
