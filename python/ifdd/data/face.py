"""A region cut out of all frames of a video: an explicit box, or one around the face that a detector finds.

The benchmarks come as aligned face crops; a network trained on them needs the face of a new video to fill the
frame alike. :mod:`ifdd.faces` follows faces that move; this is for faces that stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import VideoError
from .region import CropBox, parse_crop

__all__ = ["CropBox", "find_face", "parse_crop"]


def find_face(
    frames: Sequence[np.ndarray] | np.ndarray, margin: float | None = None, name: str = "video"
) -> CropBox:
    """Finds one square around the face that serves all frames of a clip.

    Detections of all frames are compared; the face is the place most frames agree on (so a false alarm in one
    frame cannot win), its box the median of the agreeing detections, cut out by the rule of
    :func:`ifdd.faces.face_region`.

    Args:
        frames: a few frames of one clip, uint8 RGB (H, W, 3), of one size.
        margin: as in :func:`ifdd.faces.face_region`, whose default it has.
        name: the video's name in errors.

    Returns:
        `CropBox`, inside the image.

    Raises:
        VideoError: no face that at least a quarter of the frames agree on, frames of different sizes, or
            the extra `face` is not installed.
    """
    # Not above: the package ifdd.faces reads videos, and the reading of videos needs this module.
    from ifdd.faces.boxes import overlaps
    from ifdd.faces.crop import MARGIN, face_region
    from ifdd.faces.detector import DetectorError, load_detector

    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) != 1:
        raise VideoError(
            f"{name}: the face crop needs frames of one size, got {sorted(sizes) or 'no frames'}"
        )
    height, width = sizes.pop()
    try:
        detector = load_detector()
    except DetectorError as error:
        raise VideoError(f"{name}: {error}; or give the region with crop='x,y,w,h'") from None
    detections = [detector.detect(frame[None])[0].boxes for frame in frames]
    boxes = np.concatenate(detections)
    frame_of = np.repeat(np.arange(len(detections)), [len(found) for found in detections])
    agreeing = overlaps(boxes, boxes) > 0.4
    votes = np.array([len(set(frame_of[row].tolist())) for row in agreeing])
    if votes.max(initial=0) < max(1, math.ceil(len(frames) / 4)):
        raise VideoError(
            f"{name}: no face found in {len(frames)} frames looked at; give the region with crop='x,y,w,h'"
        )
    # Of equally supported places the larger face is the nearer person.
    best = max(range(len(boxes)), key=lambda row: (votes[row], boxes[row, 2] - boxes[row, 0]))
    box = np.median(boxes[agreeing[best]], axis=0)
    return face_region(box.tolist(), width, height, MARGIN if margin is None else margin)
