"""Regions of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .errors import VideoError


class CropBox(NamedTuple):
    """A region of an image, in pixels."""

    #: Left edge.
    x: int
    #: Top edge.
    y: int
    #: Columns, at least 1.
    width: int
    #: Rows, at least 1.
    height: int

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


def parse_crop(crop: str | CropBox | Sequence[int] | None) -> CropBox | Literal["auto"] | None:
    """Reads a `crop` given as `None`, `"auto"`, `"x,y,w,h"` or four integers.

    Raises:
        ValueError: anything else, a negative corner or an empty box.
    """
    if crop is None:
        return None
    if isinstance(crop, str) and crop.strip().lower() == "auto":
        return "auto"
    parts: Sequence[Any] = crop.split(",") if isinstance(crop, str) else crop
    try:
        x, y, width, height = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"crop must be 'auto' or four integers x,y,w,h, got {crop!r}") from None
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise ValueError(f"crop needs x, y >= 0 and w, h >= 1, got {crop!r}")
    return CropBox(x, y, width, height)


def cut_out(frame: np.ndarray, box: CropBox, name: str) -> np.ndarray:
    """The region of a frame (H, W, ...), not copied; `name` is the video's in errors.

    Raises:
        VideoError: the region reaches outside.
    """
    height, width = frame.shape[:2]
    if box.x + box.width > width or box.y + box.height > height:
        raise VideoError(f"{name}: crop {box} reaches outside the {width}x{height} frame")
    return frame[box.y : box.y + box.height, box.x : box.x + box.width]
