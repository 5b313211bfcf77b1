"""Boxes around faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A region of a frame in pixels, from the corner (x0, y0) to the corner (x1, y1), which may lie between
    pixels and outside the frame.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """x1 - x0."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """y1 - y0."""
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        """Pixels inside; 0 for an empty box."""
        return max(self.width, 0.0) * max(self.height, 0.0)


@dataclass(frozen=True)
class Boxes:
    """The faces of one frame, the surest first.

    Attributes:
        boxes: float32 (n, 4), each x0, y0, x1, y1 in pixels.
        scores: float32 (n,), the detector's confidence in [0, 1].
        landmarks: float32 (n, 5, 2), x and y of both eyes, the nose and both corners of the mouth (those on
            the left of an upright picture first); None from a detector that finds none.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(
                f"boxes must be (n, 4) and scores (n,), got {self.boxes.shape} and {self.scores.shape}"
            )
        if self.landmarks is not None and self.landmarks.shape != (count, 5, 2):
            raise ValueError(f"landmarks of {count} boxes must be (n, 5, 2), got {self.landmarks.shape}")

    @classmethod
    def none(cls) -> Boxes:
        """A frame without a face."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32))

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, number: int) -> Box:
        return Box(*(float(value) for value in self.boxes[number]))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs: (n, 4) and (m, 4) -> (n, m). Empty boxes overlap nothing."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(np.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - common
    shares: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return shares
