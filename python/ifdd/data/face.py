"""Cutting the face out of a video: an explicit box, or the one a detector finds.

The benchmarks come as aligned face crops; a network trained on them needs the face of a new video to fill the
frame alike. The detector is scikit-image's LBP frontal face cascade, which comes with that package (extra
`face`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from .errors import VideoError
from .resize import resize_frame

__all__ = ["CropBox", "find_face", "parse_crop"]

DETECTION_SIDE = 512
"""Longest side that frames are brought to before detection, whatever their size: the cascade searches a small
image on too coarse a grid (of the 176x144 frames of a test clip it found the face in 1 of 6, enlarged in 5 of
6)."""

LARGEST_ENLARGEMENT = 3.0


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


def find_face(
    frames: Sequence[np.ndarray] | np.ndarray, margin: float = 0.15, name: str = "video"
) -> CropBox:
    """Finds one square around the face that serves all frames of a clip.

    Detections of all frames are compared; the face is the place most frames agree on (so a false alarm in one
    frame cannot win), its box the median of the agreeing detections, enlarged by `margin` of its side on
    every side, made square and moved (if it must, shrunk) to lie inside the image.

    Args:
        frames: a few frames of one clip, uint8 RGB (H, W, 3), of one size.
        margin: part of the side of the detected box added on each side.
        name: the video's name in errors.

    Returns:
        `CropBox`, inside the image.

    Raises:
        VideoError: no face that at least a quarter of the frames agree on, frames of different sizes, or
            scikit-image is not installed.
    """
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) != 1:
        raise VideoError(
            f"{name}: the face crop needs frames of one size, got {sorted(sizes) or 'no frames'}"
        )
    height, width = sizes.pop()
    detector = _detector(name)
    found = [(index, box) for index, frame in enumerate(frames) for box in _detect(detector, frame)]
    best: list[np.ndarray] = []
    support = 0
    for _, box in found:
        agreeing = [(index, other) for index, other in found if _overlap(box, other) > 0.4]
        voters = len({index for index, _ in agreeing})
        # Of equally supported places the larger face is the nearer person.
        if (voters, box[2]) > (support, best[0][2] if best else 0):
            support, best = voters, [box, *(other for _, other in agreeing)]
    if support < max(1, math.ceil(len(frames) / 4)):
        raise VideoError(
            f"{name}: no face found in {len(frames)} frames looked at; give the region with crop='x,y,w,h'"
        )
    x, y, w, h = np.median(np.stack(best[1:]), axis=0)
    side = int(min(round(max(w, h) * (1 + 2 * margin)), height, width))
    left = int(np.clip(round(x + w / 2 - side / 2), 0, width - side))
    top = int(np.clip(round(y + h / 2 - side / 2), 0, height - side))
    return CropBox(left, top, side, side)


def _detector(name: str) -> Any:
    try:
        return _load_detector()
    except ImportError:
        raise VideoError(
            f"{name}: crop='auto' needs scikit-image, which the extra `face` brings "
            "(pip install 'ifdd-kernels[face]'); or give the region with crop='x,y,w,h'"
        ) from None


@lru_cache(maxsize=1)
def _load_detector() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _detect(detector: Any, frame: np.ndarray) -> list[np.ndarray]:
    """Boxes (x, y, w, h) in pixels of the full frame."""
    height, width = frame.shape[:2]
    scale = min(DETECTION_SIDE / max(height, width), LARGEST_ENLARGEMENT)
    image = resize_frame(frame, (max(1, round(height * scale)), max(1, round(width * scale))))
    shortest = min(image.shape[:2])
    smallest = max(24, shortest // 6)  # the cascade's own window is 24 pixels
    if shortest < smallest:
        return []
    hits = detector.detect_multi_scale(
        image, scale_factor=1.05, step_ratio=1, min_size=(smallest, smallest), max_size=(shortest, shortest)
    )
    return [np.array([hit["c"], hit["r"], hit["width"], hit["height"]], dtype=float) / scale for hit in hits]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (x, y, w, h)."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return float(common / (a[2] * a[3] + b[2] * b[3] - common))
