"""Bringing frames to the size of the network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes one uint8 RGB frame (H, W, 3) to `size` = (height, width), bicubic with antialiasing, clamped
    to 0..255. Returns the frame itself if it has that size already.
    """
    if frame.shape[:2] == size:
        return frame
    # The kernel for bytes clamps the overshoot of the bicubic filter itself.
    # The batch dimension first: behind the permutation PyTorch would not know the channels to be last, and
    # would turn the result around.
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def frames_to_clip(frames: np.ndarray | Tensor, size: int | None = None) -> Tensor:
    """Turns decoded frames into what the network takes.

    Args:
        frames: uint8 RGB (T, H, W, 3).
        size: side S that frames are resized to: plain resize (the aspect ratio is not kept), bicubic with
            antialiasing, in float32. Without it they keep their size.

    Returns:
        float32 (3, T, S, S) in [0, 1] (clamped: the bicubic filter overshoots), contiguous.

    Raises:
        ValueError: frames of another shape or dtype, or a size below 1.
    """
    pixels = torch.as_tensor(frames)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = functional.interpolate(
            images, (size, size), mode="bicubic", align_corners=False, antialias=True
        )
        images = images.clamp(0, 1)
    return images.transpose(0, 1).contiguous()


def frames_to_clips(frames: Tensor) -> Tensor:
    """Turns a batch of clips into what the network takes, on their device: uint8 (B, T, S, S, 3) -> float32
    (B, 3, T, S, S) in [0, 1], contiguous.

    Raises:
        ValueError: frames of another shape or dtype.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (B, T, S, S, 3), got {frames.dtype} {tuple(frames.shape)}")
    # The bytes are put in order, a quarter of what the result is.
    return frames.permute(0, 4, 1, 2, 3).contiguous().float().div_(255)
