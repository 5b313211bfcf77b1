"""Which windows of a video a network reads of each face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ifdd.faces.tracks import FaceTrack, Segment


class PlannedWindow(NamedTuple):
    """A window of the face `track`: frames `start + rows` of the video, of the `length` frames from `start`
    on.
    """

    track: FaceTrack
    start: int
    length: int
    rows: np.ndarray

    @property
    def last(self) -> int:
        """The frame with which it is complete."""
        return self.start + int(self.rows[-1])

    def takes(self, frame: int) -> bool:
        """Whether a frame is part of it."""
        return bool((self.rows == frame - self.start).any())


def plan_windows(
    tracks: Sequence[FaceTrack],
    rows: np.ndarray,
    span: int,
    stretch: Callable[[int], np.ndarray],
    *,
    overlap: bool,
    centre: bool,
) -> list[PlannedWindow]:
    """The windows of all faces in the order in which they are complete.

    Each stretch in which a face is in sight is divided like a video: windows side by side from its first
    frame on and, with `overlap`, a last one that ends at its last frame. A stretch shorter than a window is
    brought to its length if it has at least half of it, or if there is no longer one of this face.

    Args:
        tracks: the faces.
        rows: (T,) frames of a window, counted from its first.
        span: frames of the video that a window covers.
        stretch: for a number of frames below `span`, the rows (T,) that bring them to a window.
        overlap: see above; otherwise frames that fill no window are left out.
        centre: only the middle window of the longest stretch of each face.
    """
    plan: list[PlannedWindow] = []
    for track in tracks:
        longest = max(track.segments, key=len)
        segments: Sequence[Segment] = [longest] if centre else track.segments
        for segment in segments:
            count = len(segment)
            if count < span:
                if segment is longest or (overlap and 2 * count >= span):
                    plan.append(PlannedWindow(track, segment.start, count, stretch(count)))
                continue
            if centre:
                starts = [segment.start + (count - span) // 2]
            else:
                starts = list(range(segment.start, segment.stop - span + 1, span))
                if overlap and count % span:
                    starts.append(segment.stop - span)
            plan.extend(PlannedWindow(track, start, span, rows) for start in starts)
    return sorted(plan, key=lambda window: (window.last, window.track.track_id, window.start))
