"""Decoding video files through PyAV (FFmpeg).

What a header says about number and times of the frames is not trusted: frames that can be decoded count. A
header that disagrees is a remark; only an error of the decoder, or bytes that the file itself proves to be
missing (`ifdd.data.truncation`), are damage.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ifdd.text import printable

from .errors import VideoError, reason
from .folder import MAX_PIXELS
from .orientation import UPRIGHT, Orientation
from .source import Picture, Source, needs
from .timing import Clock
from .truncation import doubtful_end, missing_bytes

READ_ATTEMPTS = 8
"""Failing reads in a row before the rest of a damaged file is given up."""


class FileSource(Source):
    """A video file. Damaged pictures are left out, with all that builds on them: up to the next key frame."""

    def __init__(self, path: Path, default_fps: float) -> None:
        super().__init__(path, default_fps)
        try:
            import av
        except ImportError:
            raise VideoError(needs(path, "PyAV")) from None
        options = {"max_pixels": str(MAX_PIXELS)}
        try:
            # Absolute, because FFmpeg takes "a:b.mp4" for a protocol named a. Only files: a playlist must not
            # reach for the network. Titles in another encoding do not justify a refusal.
            self._container = av.open(
                os.fspath(path.absolute()),
                options={**options, "protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{printable(path)}: not a readable video ({reason(error)})") from None
        self._errors = (av.FFmpegError, OSError)
        stream = _video_stream(self._container)
        if stream is None or stream.codec_context is None:
            self.close()
            raise VideoError(
                f"{printable(path)}: no video stream in this file"
                if stream is None
                else f"{printable(path)}: FFmpeg has no decoder for the video in this file"
            )
        stream.codec_context.options = options
        self._stream: Any = stream
        rate = stream.average_rate or stream.guessed_rate
        if rate:
            self.fps = float(rate)
        self.announced = stream.frames or None
        self._packet_count = 0
        self._loss: str | None = None  # what was lost, published when the pictures before it are given

    def close(self) -> None:
        """See `Source.close`."""
        self._container.close()

    def pictures(self) -> Iterator[Picture]:
        """See `Source.pictures`. A picture ends where the next one starts, so each waits for the next."""
        clock = Clock(self.fps)
        turned = _turned(self._stream)
        waiting: tuple[float, Any] | None = None
        end = None
        for frame, behind in self._decoded():
            stamp = _stamp(frame, self._stream)
            start = clock.start(stamp)
            if waiting is None:
                self.first_stamp = stamp
            else:
                yield Picture(waiting[0], start, partial(_convert, waiting[1], turned))
            waiting = start, frame
            if behind:
                self.loss = self._loss
        if waiting is not None:
            start, frame = waiting
            end = clock.stop(start, _length(frame))
            yield Picture(start, end, partial(_convert, frame, turned))
        self.remarks += clock.remarks()
        self.loss = self._loss or self._missing(end)
        doubt = doubtful_end(self.path, self._container.format.name)
        if self.loss is None and doubt is not None:
            self.remarks.append(doubt)

    def _decoded(self) -> Iterator[tuple[Any, bool]]:
        """The undamaged frames in the order they are shown, and whether they come behind damage."""
        inside: set[int] = set()  # time stamps of the packets that the decoder has and has not answered yet
        sound: set[int] = set()  # those of them that were sent before the last damage
        broken = False  # until the next key frame
        begun = False  # with a key frame: before it, nothing can be decoded and nothing is damaged
        early = 0
        for packet in self._packets():
            if packet is not None and packet.size:
                self._packet_count += 1
                begun = begun or packet.is_keyframe
            frames, problem = self._decode(packet)
            if problem is not None:
                if not begun:
                    early += 1
                    continue
                self._lose(problem)
                if packet is None or not getattr(packet, "is_disposable", False):
                    broken, sound = True, set(inside)
            elif packet is not None and packet.pts is not None:
                inside.add(packet.pts)
            for frame in frames:
                inside.discard(frame.pts)
                if frame.is_corrupt and not begun:
                    early += 1
                elif frame.is_corrupt:
                    self._lose("a damaged frame")
                    broken, sound = True, set(inside)
                elif not broken or frame.key_frame:
                    broken = False
                    yield frame, self._loss is not None
                elif frame.pts in sound:
                    yield frame, False
                else:
                    self.lost += 1
        if early and begun:
            self.remarks.append(f"{early} pictures before the first key frame cannot be shown")
        elif early:
            self._loss = self._loss or "there is no key frame"

    def _missing(self, end: float | None) -> str | None:
        """Proof that the file was cut off between two frames of the video, not behind the last one."""
        entries = getattr(self._stream, "index_entries", ())  # PyAV before 17 has none
        if "mov" in self._container.format.name and self._packet_count < len(entries):
            size = self.path.stat().st_size
            needed = max(entry.pos + entry.size for entry in entries)
            return f"the file has {size} of {needed} bytes" if needed > size else None
        problem = missing_bytes(self.path, self._container.format.name)
        if problem is None or self._complete(end):
            return None
        return problem

    def _complete(self, end: float | None) -> bool:
        """All the video that the header announces is there: what is missing lies behind it."""
        if self._container.format.name == "avi":
            return self.announced is not None and self._packet_count >= self.announced
        if "matroska" in self._container.format.name and end is not None:
            announced = _announced_seconds(self._container, self._stream)
            return announced is not None and end + 0.5 / self.fps >= announced
        return False

    def _packets(self) -> Iterator[Any]:
        failures = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    failures = 0
                    yield packet
                break
            except self._errors as error:
                self._lose(reason(error))
                failures += 1
                if failures >= READ_ATTEMPTS:
                    yield None
                    break

    def _decode(self, packet: Any) -> tuple[list[Any], str | None]:
        """Frames, and what was wrong with the packet; None asks for the frames the decoder still has."""
        try:
            return (self._stream.decode(None) if packet is None else packet.decode()), None
        except self._errors as error:
            return [], reason(error)

    def _lose(self, why: str) -> None:
        self.lost += 1
        self._loss = self._loss or why


def _video_stream(container: Any) -> Any | None:
    from av.stream import Disposition

    for stream in container.streams.video:
        # The cover picture of an audio file is a video stream of one frame.
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _announced_seconds(container: Any, stream: Any) -> float | None:
    """Length of the video stream by the header; None where it only knows the longest of several streams."""
    if "DURATION" in stream.metadata:  # Matroska and WebM, "00:00:01.600000000"
        try:
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return float(hours) * 3600 + float(minutes) * 60 + float(seconds)
        except ValueError:
            return None
    if len(container.streams) == 1 and container.duration:
        return float(container.duration) / 1e6
    return None


def _turned(stream: Any) -> Orientation:
    for key, value in stream.metadata.items():
        if key.lower() == "rotate":
            return Orientation.of_rotation(value)
    return UPRIGHT


def _stamp(frame: Any, stream: Any) -> float | None:
    """Seconds at which the file wants the frame shown; AVI knows only the order of decoding."""
    if frame.pts is not None:
        return float(frame.time)
    if frame.dts is not None and stream.time_base:
        return float(frame.dts * stream.time_base)
    return None


def _length(frame: Any) -> float | None:
    length = getattr(frame, "duration", None)
    return float(length * frame.time_base) if length and frame.time_base else None


_converters = threading.local()


def to_rgb(frame: Any) -> np.ndarray:
    """The picture of a frame of PyAV, uint8 (H, W, 3).

    `frame.to_ndarray` makes a converter for each frame. From PyAV 17 on that one starts threads of its own,
    which live as long as the frame; there each thread here has one converter for all its frames. Before, a
    converter would keep the colour range of the frame before.
    """
    pixels: np.ndarray
    if not _converters_have_threads():
        pixels = frame.to_ndarray(format="rgb24")
        return pixels
    from av.video.reformatter import VideoReformatter

    converter = getattr(_converters, "converter", None) or VideoReformatter()
    _converters.converter = None  # one that failed is not used again
    pixels = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    _converters.converter = converter
    return pixels


@cache
def _converters_have_threads() -> bool:
    import av

    return int(av.__version__.split(".")[0]) >= 17


def _convert(frame: Any, turned: Orientation) -> np.ndarray:
    pixels = to_rgb(frame)
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 gives no side data where it does not know one of the kinds, such as the EXIF of a JPEG.
        return Orientation.of_rotation(str(-frame.rotation)).apply(pixels)
    return (turned if matrix is None else Orientation.of_matrix(bytes(matrix))).apply(pixels)
