"""The one rule by which a face is cut out of a frame: by `predict`, `prepare`, `explain`, `annotate` and
`live` alike, so that a network sees in use what it saw in training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ifdd.data.region import CropBox
from ifdd.data.resize import resize_frame

MARGIN = 0.15
"""Part of the face box's longer side that is added on each side. The detector's box ends at the hairline and
the chin; the crops of the benchmarks show a little more."""


def face_region(box: Sequence[float], width: int, height: int, margin: float = MARGIN) -> CropBox:
    """The square of whole pixels that is cut out for a face.

    Its side is that of the longer side of the box, enlarged by `margin` of it on every side and rounded; its
    centre is the box's. Where it would leave the frame it is moved inside, and where it is larger than the
    frame it is shrunk to the frame's shorter side.

    Args:
        box: x0, y0, x1, y1 in pixels of the frame; it may reach outside.
        width: of the frame.
        height: of the frame.
        margin: see above.

    Returns:
        Left edge, top edge, width and height.
    """
    x0, y0, x1, y1 = box
    side = int(min(max(round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)), 1), width, height))
    left = int(np.clip(round((x0 + x1 - side) / 2), 0, width - side))
    top = int(np.clip(round((y0 + y1 - side) / 2), 0, height - side))
    return CropBox(left, top, side, side)


def crop(
    frame: np.ndarray, box: Sequence[float], size: int | None = None, margin: float = MARGIN
) -> np.ndarray:
    """Cuts a face out of a frame.

    Args:
        frame: uint8 RGB (H, W, 3).
        box: around the face, x0, y0, x1, y1 in pixels.
        size: side that the square is brought to (bicubic with antialiasing, :func:`resize_frame`); without it
            the pixels stay as they are.
        margin: as in :func:`face_region`.

    Returns:
        uint8 (S, S, 3); S is `size`, or the side of :func:`face_region`. Without `size` it is a view.
    """
    region = face_region(box, frame.shape[1], frame.shape[0], margin)
    pixels = frame[region.y : region.y + region.height, region.x : region.x + region.width]
    return pixels if size is None else resize_frame(pixels, (size, size))
