"""A video as the windows that the network reads, one after the other; memory holds one window, whatever the
length.

A window covers ``frames * stride`` frames, of which it takes every ``stride``-th. With ``tail="overlap"`` all
frames count: the windows stand side by side from the first frame on, and where frames are left over at the
end one more window ends at the last frame, overlapping the one before. ``tail="drop"`` leaves those frames
out, as the published evaluation does. A video shorter than a window is stretched to one as in the
checkpoint's training.

Where faces are followed, each face has windows of its own, of the stretches of frames in which it is in sight
(:mod:`ifdd.faces.plan`); the video is then read twice, first for the tracks.

Every window has the same weight in the mean. The frames in an overlap count twice, at most one window's worth
in a whole video: the longer it is the less that matters.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from ifdd.data.errors import NoFaceError
from ifdd.data.face import CropBox
from ifdd.data.sampling import Sampling, SamplingPolicy
from ifdd.data.video import VideoError, open_video
from ifdd.faces.crop import crop, face_region
from ifdd.faces.detector import FaceDetector
from ifdd.faces.plan import plan_windows
from ifdd.faces.tracks import FaceChoice, find_tracks, no_face
from ifdd.text import printable

Windows = Literal["all", "centre"]
Tail = Literal["overlap", "drop"]


@dataclass(frozen=True)
class Reading:
    """How videos are read.

    Args:
        frames: frames that the network takes, T.
        size: their side in pixels, S.
        policy: step between the frames of a window, and how short videos are stretched.
        windows: ``"all"``, or only the ``"centre"`` one.
        tail: ``"overlap"`` or ``"drop"``, see the module.
        crop: the face: ``"x,y,w,h"``, four integers, ``"auto"`` to find it, or None for the whole frame.
        strict: refuse damaged videos; otherwise what can be read of them counts.
        face: the faces to follow, each with windows of its own; None for one region, that of `crop`.
        detector: what finds them.

    Raises:
        ValueError: an unknown name for `windows` or `tail`, `face` without a detector or beside `crop`.
    """

    frames: int
    size: int
    policy: SamplingPolicy
    windows: Windows = "all"
    tail: Tail = "overlap"
    crop: str | Sequence[int] | None = None
    strict: bool = False
    face: FaceChoice | None = None
    detector: FaceDetector | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("windows", self.windows, ("all", "centre")),
            ("tail", self.tail, ("overlap", "drop")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {sorted(known)}, got {value!r}")
        if self.face is not None and self.crop is not None:
            raise ValueError("face and crop both say what is cut out: name one of them")
        if self.face is not None and self.detector is None:
            raise ValueError("face needs a detector")

    @property
    def span(self) -> int:
        """Frames of the video that one window covers."""
        return self.frames * self.policy.stride


class Window(NamedTuple):
    """A window, one input of the network: ``frames`` uint8 (T, S, S, 3), shown from ``start_seconds`` to
    ``stop_seconds``; ``part`` of the video, 0 to 1, was read by then (None where its length is not known);
    ``frame_seconds`` (T,): when each of the frames is shown. Where faces are followed, ``face`` is the number
    of the track and ``boxes`` holds the region cut out of each frame.
    """

    number: int
    start_seconds: float
    stop_seconds: float
    frames: np.ndarray
    part: float | None
    frame_seconds: np.ndarray
    face: int | None = None
    boxes: tuple[CropBox, ...] = ()

    @property
    def box(self) -> CropBox | None:
        """The region of the middle frame; None where no face is followed."""
        return self.boxes[len(self.boxes) // 2] if self.boxes else None


@dataclass(frozen=True)
class Footage:
    """The part of a video that was read.

    Attributes:
        windows: number of windows.
        frames_read: frames that were there and could be read.
        frames_announced: frames there should be by the header, None if it says nothing.
        frames_used: frames of the video that lie in a window.
        seconds: end of the last frame read.
        stretched: whether it is shorter than a window and was stretched to one.
        damage: why reading ended early, or None.
        remarks: warnings, one line each.
    """

    windows: int
    frames_read: int
    frames_announced: int | None
    frames_used: int
    seconds: float
    stretched: bool
    damage: str | None
    remarks: tuple[str, ...]


_Each = TypeVar("_Each")


class Lasting(Generic[_Each]):
    """Iterates windows and keeps what their generator returns.

    Attributes:
        result: set when the iteration has ended.
    """

    def __init__(self, windows: Generator[_Each, None, Footage]) -> None:
        self.result: Footage
        self._windows = windows

    def __iter__(self) -> Iterator[_Each]:
        self.result = yield from self._windows


class _Shown(NamedTuple):
    """A frame that may still become part of a window; `box` is what was cut out of it."""

    image: np.ndarray | None
    start: float
    stop: float
    box: CropBox | None = None


def read_windows(
    path: str | os.PathLike[str], reading: Reading, skip: int = 0
) -> Generator[Window, None, Footage]:
    """Yields the windows of a video file or a folder of frames and returns what was read of it.

    Args:
        path: the video.
        reading: how.
        skip: that many windows at the beginning are left out; their frames are decoded, not converted.

    Raises:
        VideoError: the video cannot be read or, if that is asked for, is damaged.
    """
    if reading.face is not None:
        return (yield from _read_faces(path, reading, skip))
    if reading.windows == "all":
        return (yield from _read(path, reading, skip, None))
    counted = yield from _read(path, reading, 0, -1)
    if counted.frames_read <= reading.span:
        yield from _read(path, reading, skip, None)
        return counted
    if skip == 0:
        yield from _read(path, reading, 0, (counted.frames_read - reading.span) // 2)
    return counted


def _read(
    path: str | os.PathLike[str], reading: Reading, skip: int, only: int | None
) -> Generator[Window, None, Footage]:
    """All windows but the first `skip`; or the one from frame `only` on, none if that is negative."""
    span = reading.span
    # A last window reaches back into the one before.
    first = max(0, skip - 1) * span if only is None else only if only >= 0 else float("inf")
    recent: deque[_Shown] = deque(maxlen=span)
    count = windows = 0
    with open_video(path, reading.crop, size=reading.size, strict=reading.strict) as video:

        def window(rows: np.ndarray) -> Window:
            shown = [recent[row] for row in rows]
            images = [frame.image for frame in shown if frame.image is not None]
            part = count / video.frames_announced if video.frames_announced else None
            seconds = np.array([frame.start for frame in shown])
            return Window(windows, shown[0].start, shown[-1].stop, np.stack(images), part, seconds)

        within = np.arange(reading.frames) * reading.policy.stride
        for frame in video:
            image = frame.image() if count >= first else None
            recent.append(_Shown(image, frame.seconds, frame.stop_seconds))
            count += 1
            if only is not None:
                if only >= 0 and count == only + span:
                    yield window(within)
                    break
            elif count % span == 0:
                if windows >= skip:
                    yield window(within)
                windows += 1
        if count == 0:
            raise VideoError(f"{printable(path)}: holds no frame")
        used = windows * span
        if only is None and (count < span or (count % span and reading.tail == "overlap")):
            if windows >= skip:
                rows = within if count >= span else _stretched(count, reading)
                yield window(rows)
            windows += 1
            used = count
        if only is not None:
            windows, used = 1, min(count, span)
        return Footage(
            windows,
            count,
            video.frames_announced,
            used,
            video.end_seconds,
            count < span,
            video.damage,
            tuple(video.remarks),
        )


def _read_faces(
    path: str | os.PathLike[str], reading: Reading, skip: int
) -> Generator[Window, None, Footage]:
    """All windows of all chosen faces but the first `skip`."""
    assert reading.face is not None
    assert reading.detector is not None
    tracks = find_tracks(path, reading.detector, strict=reading.strict)
    chosen = tracks.select(reading.face)
    if not chosen:
        raise NoFaceError(
            f"{printable(path)}: {no_face(tracks)}",
            "--crop x,y,w,h names the region, --face off reads whole frames",
        )
    plan = plan_windows(
        chosen,
        np.arange(reading.frames) * reading.policy.stride,
        reading.span,
        lambda length: _stretched(length, reading),
        overlap=reading.tail == "overlap",
        centre=reading.windows == "centre",
    )
    coming = {track.track_id: deque[int]() for track in chosen}
    for number, planned in enumerate(plan[skip:], skip):
        coming[planned.track.track_id].append(number)
    # Of the many tracks of a long video few have a window under way: the others wait for their next one.
    later = [(plan[numbers[0]].start, track) for track, numbers in coming.items() if numbers]
    heapify(later)
    shown: dict[int, dict[int, _Shown]] = {}
    with open_video(path, strict=reading.strict) as video:
        for frame in video:
            while later and later[0][0] <= frame.number:
                shown.setdefault(heappop(later)[1], {})
            image: np.ndarray | None = None
            for track in shown:
                numbers = coming[track]
                # A last window overlaps the one before it: two may want a frame.
                if not any(plan[number].takes(frame.number) for number in islice(numbers, 2)):
                    continue
                box = plan[numbers[0]].track.box_at(frame.number)
                assert box is not None  # windows lie inside the stretches of their face
                if image is None:
                    image = frame.image()
                shown[track][frame.number] = _Shown(
                    crop(image, box, reading.size),
                    frame.seconds,
                    frame.stop_seconds,
                    face_region(box, image.shape[1], image.shape[0]),
                )
            done = [
                (coming[track][0], track) for track in shown if plan[coming[track][0]].last == frame.number
            ]
            for number, track in sorted(done):
                rows = (plan[number].start + plan[number].rows).tolist()
                part = (frame.number + 1) / tracks.frames
                yield _face_window(number, track, [shown[track][row] for row in rows], part)
                coming[track].popleft()
                seen = shown.pop(track)
                if not coming[track]:
                    continue
                start = plan[coming[track][0]].start
                if start <= frame.number:
                    shown[track] = {n: each for n, each in seen.items() if n >= start}
                else:
                    heappush(later, (start, track))
        if any(coming.values()):
            raise VideoError(f"{printable(path)}: changed while it was read")
        return Footage(
            len(plan),
            tracks.frames,
            video.frames_announced,
            _covered([(window.start, window.start + window.length) for window in plan]),
            video.end_seconds,
            any(window.length < reading.span for window in plan),
            video.damage,
            tuple(video.remarks),
        )


def _face_window(number: int, track: int, shown: Sequence[_Shown], part: float) -> Window:
    images = np.stack([frame.image for frame in shown if frame.image is not None])
    boxes = tuple(frame.box for frame in shown if frame.box is not None)
    seconds = np.array([frame.start for frame in shown])
    return Window(number, shown[0].start, shown[-1].stop, images, part, seconds, track, boxes)


def _covered(spans: Sequence[tuple[int, int]]) -> int:
    """Frames that lie in at least one of the spans (start, stop)."""
    count = end = 0
    for start, stop in sorted(spans):
        count += max(0, stop - max(start, end))
        end = max(end, stop)
    return count


def _stretched(length: int, reading: Reading) -> np.ndarray:
    policy = reading.policy
    rows: np.ndarray = Sampling("consecutive", reading.frames, policy.stride, policy.short).indices(length)[0]
    return rows
