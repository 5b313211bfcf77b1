"""Looking at every video of a data set in advance: what is missing, broken or odd."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .errors import VideoError
from .locate import exists
from .video import open_video

MISSING = "missing"
UNREADABLE = "unreadable"
DAMAGED = "damaged"
REPEATED = "repeated"
SHARED = "shared"
FAULTS = (MISSING, UNREADABLE, DAMAGED, REPEATED, SHARED)
"""Nothing there; not a video; frames cannot be decoded; twice in its list; in the training and the test
list."""

UNUSABLE = (MISSING, UNREADABLE, DAMAGED)
"""Those that a training leaves out with `--on_error skip`, and at which a test stops."""


class Listed(NamedTuple):
    """A video as a data set names it: its split, its place in the list from 1, and the index of its class."""

    split: str
    place: int
    path: Path
    label: int


@dataclass(frozen=True)
class Reading:
    """The findings about a video.

    Attributes:
        frames: how many could be read; 0 for none.
        size: width and height in pixels of the first, None without any.
        fault: `MISSING`, `UNREADABLE`, `DAMAGED` or None.
        reason: of the fault, one line.
        notes: what is odd, but no fault, one line each.
    """

    frames: int = 0
    size: tuple[int, int] | None = None
    fault: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A video of a data set with all that was found: `faults` as fault -> one line, `notes` one line each."""

    video: Listed
    reading: Reading
    faults: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a training or a test can read it."""
        return not any(fault in self.faults for fault in UNUSABLE)


def read_through(path: Path) -> Reading:
    """Decodes a whole video."""
    if not exists(path):
        return Reading(fault=MISSING, reason="no such file or folder")
    sizes: dict[tuple[int, int], None] = {}
    folder = path.is_dir()
    try:
        with open_video(path) as stream:
            for frame in stream:
                # The images of a folder are decoded already; those of a file are converted for it.
                if folder or not sizes:
                    height, width = frame.image().shape[:2]
                    sizes[width, height] = None
            damage, notes = stream.damage, [*stream.remarks]
            frames = stream.frames_read
        if len(sizes) > 1:
            notes.append(f"frames of {len(sizes)} sizes")
    except VideoError as error:
        return Reading(fault=UNREADABLE, reason=str(error))
    size = next(iter(sizes), None)
    if damage is not None:
        return Reading(frames, size, DAMAGED, damage, tuple(notes))
    return Reading(frames, size, notes=tuple(notes))


def read_all(paths: Sequence[Path], workers: int) -> Iterator[Reading]:
    """`read_through` for each path, in order, in that many processes (0: in this one).

    A video at which a decoder crashes its process costs that video alone.
    """
    if workers < 1:
        yield from map(read_through, paths)
        return
    waiting: deque[tuple[Path, Future[Reading]]] = deque()
    rest = iter(paths)
    pool = _pool(workers)
    try:
        while True:
            while len(waiting) < 4 * workers and (path := next(rest, None)) is not None:
                waiting.append((path, pool.submit(read_through, path)))
            if not waiting:
                return
            path, future = waiting.popleft()
            try:
                yield future.result()
            except BrokenProcessPool:
                # One of those that were being read is to blame: each is tried again alone.
                pool.shutdown(wait=False, cancel_futures=True)
                for suspect in (path, *(other for other, _ in waiting)):
                    yield _read_alone(suspect)
                waiting.clear()
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def find(videos: Sequence[Listed], readings: dict[Path, Reading], window: int) -> Iterator[Finding]:
    """Faults and remarks of each video of a data set.

    Args:
        videos: of all its lists.
        readings: of their paths; asked for one after the other, so they may be read meanwhile.
        window: frames that a window covers.
    """
    places: dict[str, list[Listed]] = {}
    for video in videos:
        places.setdefault(os.path.realpath(video.path), []).append(video)
    for video in videos:
        reading = readings[video.path]
        faults = {reading.fault: reading.reason} if reading.fault else {}
        notes = list(reading.notes)
        if reading.fault is None and reading.frames < window:
            notes.append(f"short: {reading.frames} frames for a window of {window}")
        same = [other for other in places[os.path.realpath(video.path)] if other is not video]
        if repeated := [other for other in same if other.split == video.split]:
            labels = "" if all(other.label == video.label for other in repeated) else ", with another label"
            faults[REPEATED] = f"also number {repeated[0].place} of the {video.split} list{labels}"
        if shared := [other for other in same if other.split != video.split]:
            faults[SHARED] = f"also number {shared[0].place} of the {shared[0].split} list"
        yield Finding(video, reading, faults, tuple(notes))


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that waits for these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_alone(path: Path) -> Reading:
    with _pool(1) as pool:
        try:
            return pool.submit(read_through, path).result()
        except BrokenProcessPool:
            return Reading(fault=UNREADABLE, reason="the decoder crashed")
