"""Where one shot of a film ends and another begins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_ROWS, _COLUMNS = 24, 32
_OTHER_COLOURS = 0.45
_OTHER_PICTURE = 0.2


class Look(NamedTuple):
    """A frame at a glance: `picture` float32 (h, w, 3) in [0, 1], at most 24 x 32; `colours` float64 (64,),
    its histogram.
    """

    picture: np.ndarray
    colours: np.ndarray


def look_of(frame: np.ndarray) -> Look:
    """Of a frame uint8 (H, W, 3)."""
    rows = np.linspace(0, frame.shape[0] - 1, min(_ROWS, frame.shape[0])).astype(int)
    columns = np.linspace(0, frame.shape[1] - 1, min(_COLUMNS, frame.shape[1])).astype(int)
    small = frame[np.ix_(rows, columns)]
    return Look(small.astype(np.float32) / 255, colours_of(small))


def colours_of(pixels: np.ndarray) -> np.ndarray:
    """Histogram of pixels uint8 (..., 3) in 4 x 4 x 4 colours; its sum is 1, or 0 without pixels."""
    index = (pixels >> 6).astype(np.int64).reshape(-1, 3) @ np.array([16, 4, 1])
    counts: np.ndarray = np.bincount(index, minlength=64) / max(len(index), 1)
    return counts


def is_cut(before: Look, after: Look) -> bool:
    """Whether two frames that follow each other within a fraction of a second are of different shots: of
    other sizes, of widely other colours, or of somewhat other colours at most places.
    """
    if before.picture.shape != after.picture.shape:
        return True
    colours = np.abs(before.colours - after.colours).sum() / 2
    if colours > _OTHER_COLOURS:
        return True
    other = float(np.abs(before.picture - after.picture).mean())
    return bool(other > _OTHER_PICTURE and colours > _OTHER_COLOURS / 2)
