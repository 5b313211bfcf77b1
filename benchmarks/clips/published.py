"""The published pipeline's operations, as torchvision defines them: pictures by Pillow, everything after that
in float32 tensors, one clip at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ifdd.data.transforms import Augmentation

LUMA = (0.2989, 0.587, 0.114)


def decode_pictures(files: Sequence[Path]) -> list[Image.Image]:
    """Frames of a folder."""
    return [Image.open(file).convert("RGB") for file in files]


def decode_video(file: Path, count: int) -> list[Image.Image]:
    """The first frames of a video."""
    with av.open(str(file)) as container:
        container.streams.video[0].thread_count = 1
        frames = zip(range(count), container.decode(video=0), strict=False)
        return [frame.to_image() for _, frame in frames]


def resize(pictures: Sequence[Image.Image], size: int) -> list[Image.Image]:
    """Plain resize, bicubic."""
    return [picture.resize((size, size), Image.Resampling.BICUBIC) for picture in pictures]


def to_floats(pictures: Sequence[Image.Image]) -> Tensor:
    """float32 (T, 3, S, S) in [0, 1]."""
    arrays = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures)
    return torch.stack([array.contiguous().float() / 255 for array in arrays])


def augment(frames: Tensor, drawn: Augmentation, size: int) -> Tensor:
    """Flip, crop and colours: (T, 3, H, W) -> (3, T, S, S)."""
    if drawn.flip:
        frames = frames.flip(-1)
    frames = frames[..., drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
    frames = functional.interpolate(frames, (size, size), mode="bilinear", antialias=True)
    brightness, contrast, saturation, hue = drawn.strengths
    for step in drawn.steps:
        if step == 0:
            frames = (frames * brightness).clamp(0, 1)
        elif step == 1:
            frames = _blend(frames, _luma(frames).mean((-2, -1), keepdim=True), contrast)
        elif step == 2:
            frames = _blend(frames, _luma(frames), saturation)
        else:
            frames = _turn_hue(frames, hue)
    return frames.transpose(0, 1).contiguous()


def _luma(frames: Tensor) -> Tensor:
    red, green, blue = frames.split(1, 1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _blend(frames: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * frames + (1 - factor) * other).clamp(0, 1)


def _turn_hue(frames: Tensor, shift: float) -> Tensor:
    highest, lowest = frames.amax(1), frames.amin(1)
    chroma = highest - lowest
    red, green, blue = ((highest - part) / torch.where(chroma == 0, 1, chroma) for part in frames.unbind(1))
    is_red, is_green = highest == frames[:, 0], highest == frames[:, 1]
    hue = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = (hue / 6 + shift) % 1
    # Each channel is the highest value but for a trapezoid of the hue (Smith 1978).
    channels = []
    for offset in (5, 3, 1):
        place = (offset + hue * 6) % 6
        channels.append(highest - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1)
