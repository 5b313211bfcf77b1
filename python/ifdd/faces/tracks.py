"""The faces of a whole video, followed from beginning to end.

A video is read once for its tracks and once more for the pixels. Faces are looked for in some frames a second
and interpolated between them, which is exact enough for a face and costs less than the network. Knowing the
whole video, boxes are smoothed without delay, the largest face is known, and memory holds numbers only, about
half a megabyte for an hour and a face.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from ifdd.data.errors import VideoError
from ifdd.data.video import Frame, open_video
from ifdd.faces.boxes import Box
from ifdd.faces.detector import FaceDetector
from ifdd.faces.shots import look_of
from ifdd.faces.tracker import PATIENCE, Tracker
from ifdd.text import printable

FaceChoice = Literal["largest", "all"] | int
"""Which faces of a video count: the largest, all, or so many of the largest."""

LOOK_SECONDS = 0.2
LOOK_FRAMES = 8
"""Faces are looked for after that many seconds, and at the latest after that many frames."""

SMOOTHING = 0.15
"""Standard deviation in seconds of the weights by which boxes are averaged with those before and after."""


@dataclass(frozen=True)
class Segment:
    """A stretch of frames in which a face is followed without a break.

    Attributes:
        start: the first frame.
        stop: one past the last frame.
        frames: int64 (k,), rising: those that boxes are given for; between them they are interpolated, before
            the first and after the last they stay.
        boxes: float32 (k, 4), smoothed.
    """

    start: int
    stop: int
    frames: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return self.stop - self.start

    def box_at(self, frame: int) -> Box:
        """The box in a frame from `start` to `stop - 1`."""
        return Box(*(float(np.interp(frame, self.frames, self.boxes[:, side])) for side in range(4)))


@dataclass(frozen=True)
class FaceTrack:
    """One person of a video: ``track_id`` from 1 in the order of appearance, and the stretches in sight."""

    track_id: int
    segments: tuple[Segment, ...]

    @property
    def prominence(self) -> float:
        """Pixels of the face, summed over all its frames: how much there is to see of it."""
        total = 0.0
        for segment in self.segments:
            sides = segment.boxes[:, 2:] - segment.boxes[:, :2]
            total += float(np.prod(sides, axis=1).mean()) * len(segment)
        return total

    def box_at(self, frame: int) -> Box | None:
        """The box in a frame; None where the face is not in sight."""
        for segment in self.segments:
            if segment.start <= frame < segment.stop:
                return segment.box_at(frame)
        return None


@dataclass(frozen=True)
class FaceTracks:
    """All faces of a video.

    Attributes:
        tracks: in the order of their numbers.
        frames: frames of the video that could be read.
        looked_at: in how many of them faces were looked for.
        cuts: first frames of the shots after the first.
    """

    tracks: tuple[FaceTrack, ...]
    frames: int
    looked_at: int
    cuts: tuple[int, ...] = ()

    def faces_at(self, frame: int) -> list[tuple[int, Box]]:
        """Track and box of each face in a frame."""
        found = ((track.track_id, track.box_at(frame)) for track in self.tracks)
        return [(number, box) for number, box in found if box is not None]

    def select(self, face: FaceChoice) -> tuple[FaceTrack, ...]:
        """The faces that count, the most prominent first (:attr:`FaceTrack.prominence`)."""
        ordered = sorted(self.tracks, key=lambda track: (-track.prominence, track.track_id))
        if face == "all":
            return tuple(ordered)
        return tuple(ordered[: 1 if face == "largest" else face])


def parse_face(face: str | int | None) -> FaceChoice | None:
    """Reads a choice of faces: ``"largest"``, ``"all"``, a number from 1, or ``"off"`` or None for none.

    Raises:
        ValueError: anything else.
    """
    if face is None:
        return None
    word = str(face).strip().lower()
    if word == "off":
        return None
    if word == "largest":
        return "largest"
    if word == "all":
        return "all"
    try:
        number = int(word)
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError(f"face must be largest, all, off or a number from 1, got {face!r}")
    return number


def find_tracks(
    path: str | os.PathLike[str],
    detector: FaceDetector,
    *,
    strict: bool = False,
    check: Callable[[], None] | None = None,
) -> FaceTracks:
    """Finds and follows all faces of a video.

    Args:
        path: as :func:`ifdd.data.video.open_video`.
        detector: for example that of :func:`ifdd.faces.load_detector`.
        strict: as :func:`ifdd.data.video.open_video`.
        check: called before each frame; what it raises ends the search.

    Returns:
        The faces with their boxes, numbered from 1.

    Raises:
        VideoError: the video cannot be read.
    """
    follower = _Follower(detector)
    with open_video(path, strict=strict) as video:
        for frame in video:
            if check is not None:
                check()
            follower.add(frame)
        if video.frames_read == 0:
            raise VideoError(f"{printable(path)}: holds no frame")
        return follower.finish(video.frames_read)


def no_face(tracks: FaceTracks) -> str:
    """The words for a video without faces."""
    return f"no face found in the {tracks.looked_at} frames looked at of {tracks.frames}"


class _Follower:
    """Collects the detections of a video, track by track."""

    def __init__(self, detector: FaceDetector) -> None:
        self._detector = detector
        self._tracker = Tracker()
        self._waiting: list[Frame] = []
        self._last: tuple[Frame, np.ndarray] | None = None
        self._looked: list[int] = []
        self._seconds: list[float] = []
        self._shots = [0]
        self._seen: dict[int, list[tuple[int, np.ndarray]]] = {}  # track -> frames looked at, boxes

    def add(self, frame: Frame) -> None:
        """The next frame."""
        self._waiting.append(frame)
        if (
            self._last is None
            or len(self._waiting) >= LOOK_FRAMES
            or frame.seconds - self._last[0].seconds >= LOOK_SECONDS - 1e-6
        ):
            self._look(frame)

    def finish(self, frames: int) -> FaceTracks:
        """The tracks, after the last frame."""
        if self._waiting:
            self._look(self._waiting[-1])
        rare = 1 if len(self._looked) < 3 else 2
        seen = [places for places in self._seen.values() if len(places) >= rare]
        tracks = [FaceTrack(number, self._segments(places, frames)) for number, places in enumerate(seen, 1)]
        return FaceTracks(tuple(tracks), frames, len(self._looked), tuple(self._shots[1:]))

    def _look(self, frame: Frame) -> None:
        image = frame.image()
        boxes = self._detector.detect(image[None])[0]
        # Times that rise, also where those of a file do not.
        seconds = max(frame.seconds, self._seconds[-1] + 1e-3) if self._seconds else frame.seconds
        self._tracker.update(boxes, image, seconds)
        if self._tracker.new_shot:
            self._shots.append(self._where_cut(image))
        for track, box in zip(self._tracker.matches, boxes.boxes, strict=True):
            self._seen.setdefault(track, []).append((len(self._looked), box))
        self._looked.append(frame.number)
        self._seconds.append(seconds)
        self._last = (frame, image)
        self._waiting = []

    def _where_cut(self, image: np.ndarray) -> int:
        """The first frame of the new shot: after the greatest change since the last look."""
        assert self._last is not None
        images = [self._last[1], *(frame.image() for frame in self._waiting[:-1]), image]
        looks = [look_of(each) for each in images]
        changes = [
            np.inf
            if before.picture.shape != after.picture.shape
            else float(np.abs(before.picture - after.picture).mean())
            for before, after in pairwise(looks)
        ]
        return self._waiting[int(np.argmax(changes))].number

    def _segments(self, places: Sequence[tuple[int, np.ndarray]], frames: int) -> tuple[Segment, ...]:
        """Cuts a track where its face was out of sight for long."""
        looks = np.array([number for number, _ in places])
        boxes = np.stack([box for _, box in places]).astype(np.float64)
        seconds = np.array([self._seconds[number] for number, _ in places])
        # Out of sight: not found at looks in between, for long. Times of frames are rounded.
        breaks = np.flatnonzero((np.diff(seconds) > PATIENCE + 1e-6) & (np.diff(looks) > 1)) + 1
        return tuple(
            self._segment(looks[part], _smooth(seconds[part], boxes[part]), frames)
            for part in np.split(np.arange(len(looks)), breaks)
        )

    def _segment(self, looks: np.ndarray, boxes: np.ndarray, frames: int) -> Segment:
        numbers = np.array([self._looked[look] for look in looks.tolist()])
        # A face that is there at the first or last look of a shot is there in all frames before or after.
        # By halving: a long video has thousands of looks, shots and tracks.
        shot = bisect_right(self._shots, numbers[0])
        begin, end = self._shots[shot - 1], self._shots[shot] if shot < len(self._shots) else frames
        first = self._looked[bisect_left(self._looked, begin)]
        last = self._looked[bisect_left(self._looked, end) - 1]
        start = begin if numbers[0] == first else int(numbers[0])
        stop = end if numbers[-1] == last else int(numbers[-1]) + 1
        return Segment(start, stop, numbers, boxes.astype(np.float32))


def _smooth(seconds: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Each box (k, 4) becomes the mean of those around it, by a normal distribution over the time between:
    what lies before and after counts alike, so that a moving box does not lag.
    """
    smooth = np.empty_like(boxes)
    for number, now in enumerate(seconds):
        near = slice(*np.searchsorted(seconds, (now - 4 * SMOOTHING, now + 4 * SMOOTHING)))
        weights = np.exp(-(((seconds[near] - now) / SMOOTHING) ** 2) / 2)
        smooth[number] = weights @ boxes[near] / weights.sum()
    return smooth
