"""Writing an annotated video frame by frame, with the sound of another file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ifdd.data.errors import reason
from ifdd.text import printable
from ifdd.whole import part_of

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Endings of annotated videos, and FFmpeg's names of their formats."""

_TIME_BASE = Fraction(
    1, 60000
)  # whole for 24, 25, 30, 50, 60 and 29.97 frames a second; MPEG-4 allows no finer
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# By the names of FFmpeg's decoders (that of MP3 is called mp3float). Others fail when the file is finished,
# or players do not expect them there; Matroska takes anything.
_IN_BOTH = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "alac"})
_SOUND = {"mp4": _IN_BOTH | {"opus", "flac"}, "mov": _IN_BOTH}

_LEAD_SECONDS = 0.05


class FilmError(ValueError):
    """An annotated video that cannot be written; the message is one line."""


class Film:
    """A video file that grows frame by frame; a context manager. After the block the file is there whole, or
    as it was before if the block failed. What cannot be filmed again is kept: see `live`.

    Args:
        path: with an ending of :data:`FORMATS`.
        size: width and height of the frames, even.
        fps: about how many a second; the times given with the frames count.
        sound: a file whose first sound track is copied as it is.
        sound_from: its time stamp, in seconds, at which the first frame is shown.
        live: half the processor time or less, for about two and a half times the bytes; and where the disk
            is full the film up to there is kept, all but the last second.

    Attributes:
        remark: why the sound was left out, or None.

    Raises:
        FilmError: an ending that is not known, no encoder, or a file that cannot be written (a full disk);
            the message says how much of a live film was kept.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        fps: float,
        sound: str | os.PathLike[str] | None = None,
        sound_from: float = 0.0,
        live: bool = False,
    ) -> None:
        self.path = Path(path)
        self.remark: str | None = None
        self._format = film_format(self.path)
        self._size = size
        self._fps = fps
        self._sound_path = None if sound is None else Path(sound)
        self._sound_from = sound_from
        self._live = live
        self._last = -1
        self._ended = False
        self._stack = contextlib.ExitStack()
        self._packets: Iterator[Any] = iter(())
        self._packet: Any = None

    def __enter__(self) -> Film:
        import av

        # Readable from the first second on, and an ordinary file once it is complete.
        fragments = {"movflags": "frag_keyframe+hybrid_fragmented"}
        options = fragments if self._live and self._format in ("mp4", "mov") else {}
        with self._writing(), self._stack:
            self._part = self._stack.enter_context(part_of(self.path))
            self._container: Any = self._stack.enter_context(
                av.open(str(self._part), "w", format=self._format, options=options)
            )
            encoder = next((name for name in _ENCODERS if name in av.codecs_available), None)
            if encoder is None:
                raise FilmError(f"the installed PyAV has none of the encoders {', '.join(_ENCODERS)}")
            stream: Any = self._container.add_stream(
                encoder, rate=Fraction(self._fps).limit_denominator(1001)
            )
            stream.width, stream.height = self._size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = _TIME_BASE
            if encoder == "libx264":
                stream.options = {"crf": "20", "preset": "ultrafast" if self._live else "veryfast"}
            else:
                stream.bit_rate = max(1_000_000, 4 * self._size[0] * self._size[1])
            if self._live:
                stream.gop_size = max(1, round(self._fps))  # a second
            self._stream = stream
            if self._sound_path is not None and self._sound_path.is_file():
                self._open_sound(self._sound_path)
            self._container.start_encoding()  # only now is the file opened
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._writing():
            self._container.mux(self._stream.encode(None))
            self._copy_sound(None)
            self._container.close()
            self._stack.close()

    def write(self, picture: np.ndarray, start: float, stop: float) -> None:
        """The next frame: uint8 RGB (H, W, 3), shown from `start` to `stop` seconds."""
        import av

        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        # Encoders want times that rise, also where those of a damaged file do not.
        self._last = max(self._last + 1, round(start / _TIME_BASE))
        frame.pts = self._last
        frame.time_base = _TIME_BASE
        frame.duration = max(1, round((stop - start) / _TIME_BASE))
        with self._writing():
            self._container.mux(self._stream.encode(frame))
            self._copy_sound(stop)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # FFmpeg's errors of the system are some, and name a part of the file
            self._ended = True
            kept = self._kept_seconds() if self._live and self._part.exists() else 0.0
            with contextlib.suppress(OSError):  # the same once more
                if kept:
                    self._stack.close()
                else:
                    self._stack.__exit__(type(error), error, error.__traceback__)
            text = f"{printable(self.path)}: cannot be written ({reason(error)})"
            raise FilmError(f"{text}; the first {kept:.1f} seconds are there" if kept else text) from None

    def _kept_seconds(self) -> float:
        """How much of a film that cannot grow any more can be played; it is closed."""
        import av

        with contextlib.suppress(OSError):
            self._container.close()
        seconds = 0.0
        with contextlib.suppress(av.FFmpegError, OSError), av.open(str(self._part)) as film:
            for packet in film.demux(film.streams.video[:1]) if film.streams.video else ():
                if packet.pts is not None and not packet.is_corrupt:
                    seconds = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        return seconds

    def _open_sound(self, path: Path) -> None:
        import av

        try:
            source = self._stack.enter_context(
                av.open(
                    str(path.absolute()), options={"protocol_whitelist": "file"}, metadata_errors="replace"
                )
            )
        except (av.FFmpegError, OSError, ValueError):
            return  # an animated image, for example, which Pillow reads
        if not source.streams.audio:
            return
        track = source.streams.audio[0]
        name = track.codec_context.name if track.codec_context is not None else "unknown"
        if self._format in _SOUND and name not in _SOUND[self._format]:
            self.remark = (
                f"sound in the format {name} does not fit into {self.path.suffix}, .mkv takes it: left out"
            )
            return
        try:
            self._track: Any = self._container.add_stream_from_template(track)
        except (av.FFmpegError, ValueError) as error:
            self.remark = f"the sound cannot be copied ({reason(error)}): left out"
            return
        self._packets = source.demux(track)
        self._packet = next(self._packets, None)

    def _copy_sound(self, until: float | None) -> None:
        """Packets that begin before `until`, or all."""
        import av

        while self._packet is not None:
            packet = self._packet
            if packet.pts is not None and packet.size:
                shift = round(self._sound_from / packet.time_base)
                if until is not None and float((packet.pts - shift) * packet.time_base) >= until:
                    return
                # Sound before the first picture has no place, but decoders need the packet before.
                if float((packet.pts - shift) * packet.time_base) > -_LEAD_SECONDS:
                    packet.pts -= shift
                    packet.dts = packet.pts if packet.dts is None else packet.dts - shift
                    packet.stream = self._track
                    self._container.mux(packet)
            try:
                self._packet = next(self._packets, None)
            except (av.FFmpegError, OSError) as error:
                self.remark = f"the sound is damaged ({reason(error)}): copied up to there"
                self._packet = None


def film_format(path: Path) -> str:
    """FFmpeg's name of the format.

    Raises:
        FilmError: another ending.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise FilmError(f"an annotated video ends in {', '.join(FORMATS)}, got {printable(path)}") from None
