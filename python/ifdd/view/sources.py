"""Frames as they come: from a camera, an address or a file that stands in for a camera."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ifdd.data.errors import VideoError, reason
from ifdd.data.ffmpeg import to_rgb
from ifdd.data.source import needs
from ifdd.data.video import open_video
from ifdd.text import printable

WAITING = 8
"""Frames that may wait to be looked at; with a camera those that come meanwhile are dropped."""

OPEN_SECONDS = 10.0
"""An address that gives nothing for so long is given up."""

MOST_DAMAGED = 100
"""Damaged pieces in a row after which a camera or an address is given up."""


class LiveFrame(NamedTuple):
    """uint8 RGB (H, W, 3), shown from ``seconds`` on, until ``stop`` where that is known; ``arrived`` by
    :func:`time.monotonic`.
    """

    image: np.ndarray
    seconds: float
    stop: float | None
    arrived: float


_Late = tuple[float, float | None, Callable[[], np.ndarray]]  # seconds, stop, and what converts the frame


def is_camera(source: str) -> bool:
    """Whether this is the number of a camera."""
    return source.isdigit()


def is_url(source: str) -> bool:
    """Whether this is an address."""
    return "://" in source


def read_source(source: str) -> Iterator[_Late]:
    """Of each frame of a camera (by number), an address or a video: seconds, end, and what converts it.

    Raises:
        VideoError: nothing can be read there.
    """
    if is_camera(source):
        yield from _device(*_camera(int(source)))
    elif is_url(source):
        yield from _device(source, None)
    else:
        with open_video(source) as video:
            for frame in video:
                yield frame.seconds, frame.stop_seconds, frame.image


def _camera(number: int) -> tuple[str, str]:
    """FFmpeg's name of a camera, and the driver."""
    if sys.platform == "darwin":
        return f"{number}:none", "avfoundation"
    if sys.platform == "win32":
        # DirectShow knows cameras by name only.
        import av.device

        names = [device.name for device in av.device.enumerate_input_devices("dshow") if _films(device)]
        if number >= len(names):
            raise VideoError(f"camera {number}: there are {len(names)} cameras, counted from 0")
        return f"video={names[number]}", "dshow"
    device = f"/dev/video{number}"
    if not Path(device).exists():
        found = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video[0-9]*"))
        there = f"there is {', '.join(found)}" if found else "this machine has none"
        raise VideoError(f"camera {number}: {there} ({device} does not exist)")
    return device, "v4l2"


def _films(device: Any) -> bool:
    return "video" in getattr(device, "media_types", ["video"])


def _device(address: str, driver: str | None) -> Iterator[_Late]:
    try:
        import av
    except ImportError:
        raise VideoError(needs(address, "PyAV")) from None
    heard = time.monotonic()
    try:
        with av.open(address, format=driver, timeout=OPEN_SECONDS) as container:
            if not container.streams.video:
                raise VideoError(f"{printable(address)}: no video there")
            begun = time.monotonic()
            for frame in _decoded(container):
                # Clocks of cameras differ: what counts is when a frame comes.
                yield time.monotonic() - begun, None, partial(to_rgb, frame)
                heard = time.monotonic()
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        # An error of its own says that the time is over, but of RTSP, for example, only that data is missing.
        if isinstance(error, av.ExitError) or time.monotonic() - heard >= OPEN_SECONDS:
            raise VideoError(f"{printable(address)}: gave nothing for {OPEN_SECONDS:g} seconds") from None
        raise VideoError(f"{printable(address)}: cannot be read ({reason(error)})") from None


def _decoded(container: Any) -> Iterator[Any]:
    """The frames; what is lost on the way costs a picture, not the session."""
    import av

    damaged = 0
    for packet in container.demux(container.streams.video[0]):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            damaged += 1
            if damaged >= MOST_DAMAGED:
                raise
            continue
        if frames:
            damaged = 0
        yield from frames


class Feed:
    """Reads a source in a thread of its own; a context manager and an iterator of :class:`LiveFrame`.

    Args:
        source: as for :func:`read_source`.
        realtime: a file gives its frames when a player would show them, and those that nobody takes are
            dropped, as with a camera; otherwise every frame waits until it is taken.

    Attributes:
        dropped: frames that came while :data:`WAITING` others waited.
        given: frames that were iterated.
    """

    def __init__(self, source: str, realtime: bool = True) -> None:
        self.dropped = 0
        self.given = 0
        self._source = source
        self._live = realtime or is_camera(source) or is_url(source)
        self._paced = realtime and not is_camera(source) and not is_url(source)
        self._frames: queue.Queue[LiveFrame | BaseException | None] = queue.Queue(WAITING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ifdd-feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A camera that hangs in its driver must not keep the program.
        self._thread.join(timeout=2.0)

    def __iter__(self) -> Iterator[LiveFrame]:
        while True:
            item = self._frames.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            self.given += 1
            # A frame that waited because it was read ahead is as new as one that came now.
            yield item if self._live else item._replace(arrived=time.monotonic())

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            begun = time.monotonic()
            for seconds, stop, convert in read_source(self._source):
                if self._paced and self._stop.wait(max(0.0, begun + seconds - time.monotonic())):
                    return
                if self._live and self._frames.full():
                    self.dropped += 1
                elif not self._put(LiveFrame(convert(), seconds, stop, time.monotonic())):
                    return
        except BaseException as error:
            end = error
        self._put(end)

    def _put(self, item: LiveFrame | BaseException | None) -> bool:
        """Waits for room; False when nobody reads any more."""
        while not self._stop.is_set():
            try:
                self._frames.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def name_of(source: str) -> str:
    """How reports call a source."""
    return f"camera {source}" if is_camera(source) else printable(os.fspath(source))
