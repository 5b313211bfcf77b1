"""Reading face videos: files through PyAV, folders of numbered images through Pillow.

Frames are resized while decoding, so a long video never lies in memory at full size. Whatever goes wrong is a
`VideoError` of one line with the path and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VideoError
from .face import CropBox, find_face, parse_crop
from .resize import resize_frame

__all__ = [
    "IMAGE_SUFFIXES",
    "VideoError",
    "VideoFrames",
    "count_frames",
    "frame_files",
    "locate_face",
    "read_video",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

FACE_SAMPLES = 16
"""Most frames looked at to find the face of a video (`crop="auto"`)."""

Loader = Callable[[], np.ndarray]
"""Converts one frame to uint8 RGB (H, W, 3) when called; frames that are skipped are never converted."""


@dataclass(frozen=True)
class VideoFrames:
    """A decoded video.

    Attributes:
        frames: uint8 RGB, (T, H, W, 3), T >= 1.
        fps: frames per second; for a folder of images the `folder_fps` passed to `read_video`.
        path: where it came from.
    """

    frames: np.ndarray
    fps: float
    path: Path


class _BrokenError(Exception):
    """The stream ended before its announced end; the text says how."""


def read_video(
    path: str | os.PathLike[str],
    crop: str | CropBox | Sequence[int] | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    indices: Sequence[int] | np.ndarray | None = None,
    max_frames: int | None = None,
    accept_partial: bool = False,
    folder_fps: float = 25.0,
    max_bytes: int = 4 << 30,
) -> VideoFrames:
    """Reads a video file, or a folder of numbered `.jpg`/`.png` frames.

    Args:
        path: a video file, or a folder whose images end in their frame number (`7.jpg`, `00012_00007.png`).
        crop: region kept of every (upright) frame, before resizing: a `CropBox`, four integers, `"x,y,w,h"`,
            or `"auto"` to find the face (`ifdd.data.face.find_face`; reads the video a second time).
        size: side in pixels, or (height, width), that every frame is resized to while decoding: a plain
            resize (the aspect ratio is not kept, as in the original pipeline), bicubic with antialiasing.
            Without it the frames keep their size, and frames that differ are brought to the size of the first
            one.
        indices: frames to keep, in this order, repetition allowed; only these are converted and held.
            Decoding stops at the largest.
        max_frames: reads at most that many frames from the beginning; not together with `indices`.
        accept_partial: returns the frames before the break when decoding breaks in the middle; without effect
            on `indices`, which must all be readable.
        folder_fps: rate reported for folders of images, and for files that state none.
        max_bytes: refuses to hold more than this many bytes of frames.

    Returns:
        VideoFrames with frames uint8 (T, H, W, 3).

    Raises:
        VideoError: nothing there, empty, not a video, no video stream, no frame, damaged or cut off (detected
            by a decoding error, a damaged frame, fewer frames than the header announces or, where only a
            duration is announced, an end more than max(0.5 s, 5 %) early), no face found, a crop outside the
            image, too large, or an index beyond the end.
        ValueError: `size`, `indices` or `max_frames` is not usable.
    """
    path = Path(path)
    target = _target_size(size)
    wanted = None if indices is None else _wanted_indices(indices)
    if max_frames is not None and (max_frames < 1 or wanted is not None):
        raise ValueError(
            f"max_frames must be at least 1 and not come together with indices, got {max_frames}"
        )
    region = parse_crop(crop)
    box = (
        locate_face(path, max_frames=max_frames, accept_partial=accept_partial)
        if region == "auto"
        else region
    )
    last = None if wanted is None else int(wanted.max())
    limit = max_frames if last is None else last + 1
    needed = None if wanted is None else set(wanted.tolist())

    stream = _open(path, folder_fps)
    kept: dict[int, np.ndarray] = {}
    held = 0
    count = 0
    try:
        for load in stream.frames():
            if needed is None or count in needed:
                frame = _cut(load(), box, path)
                if target is None:
                    target = (frame.shape[0], frame.shape[1])
                kept[count] = resize_frame(frame, target)
                held += kept[count].nbytes
                if held > max_bytes:
                    raise VideoError(
                        f"{path}: more than {max_bytes / 2**30:.3g} GiB of {target[1]}x{target[0]} frames; "
                        "pass size= to resize while decoding, or max_frames="
                    )
            count += 1
            if limit is not None and count >= limit:
                break
    except _BrokenError as broken:
        if wanted is not None:
            # Frames that were not asked for may not have been looked at: their number says nothing.
            raise VideoError(f"{path}: frame {count} cannot be read ({broken})") from None
        _refuse_partial(path, count, broken, accept_partial)
    if count == 0:
        raise VideoError(f"{path}: holds no frame")
    if wanted is None:
        order: Sequence[int] = range(count)
    elif int(wanted.max()) < count:
        order = wanted.tolist()
    else:
        raise VideoError(f"{path}: frame {int(wanted.max())} was asked for, but it has only {count} frames")
    return VideoFrames(np.stack([kept[i] for i in order]), stream.fps, path)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames that `read_video` would return. Files are decoded for it (headers are not to be
    trusted), without converting any frame; folders are only listed.

    Raises:
        VideoError: as `read_video`.
    """
    path = Path(path)
    if path.is_dir():
        return len(frame_files(path))
    count = 0
    try:
        for _ in _open(path, 25.0).frames():
            count += 1
    except _BrokenError as broken:
        _refuse_partial(path, count, broken, accept_partial=False)
    if count == 0:
        raise VideoError(f"{path}: holds no frame")
    return count


def locate_face(
    path: str | os.PathLike[str], max_frames: int | None = None, accept_partial: bool = False
) -> CropBox:
    """The region that `read_video(path, crop="auto")` keeps: `ifdd.data.face.find_face` on at most 16 frames,
    evenly spread over the video (or its first `max_frames` frames).

    Raises:
        VideoError: as `read_video`.
    """
    path = Path(path)
    return find_face(_spread_frames(path, max_frames, accept_partial), name=str(path))


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder in the order of their frame numbers: the integer after the last `_` of the stem
    (plain sorting would give 1, 10, 11, 2). Hidden files and other types are ignored.

    Raises:
        VideoError: no such folder, no image in it, an image without a frame number, or two with the same.
    """
    folder = Path(folder)
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise VideoError(f"{folder}: cannot list the folder ({error.strerror})") from None
    numbered: dict[int, Path] = {}
    for file in files:
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        tail = file.stem.rsplit("_", 1)[-1]
        if not (tail.isascii() and tail.isdigit()):
            raise VideoError(f"{folder}: image {file.name!r} does not end in a frame number")
        number = int(tail)
        if number in numbered:
            both = f"{numbered[number].name!r} and {file.name!r}"
            raise VideoError(f"{folder}: frame {number} is there twice ({both})")
        numbered[number] = file
    if not numbered:
        raise VideoError(f"{folder}: no {'/'.join(IMAGE_SUFFIXES)} images in this folder")
    return [numbered[number] for number in sorted(numbered)]


class _Folder:
    def __init__(self, path: Path, fps: float) -> None:
        self.files = frame_files(path)
        self.fps = fps

    def frames(self) -> Iterator[Loader]:
        for file in self.files:
            yield partial(_read_image, file)


class _File:
    def __init__(self, path: Path, default_fps: float) -> None:
        self.path = path
        self.fps = default_fps

    def frames(self) -> Iterator[Loader]:
        try:
            import av
        except ImportError:
            raise VideoError(_needs(self.path, "PyAV")) from None
        try:
            # Absolute, because FFmpeg takes "a:b.mp4" for a protocol named a.
            container = av.open(os.fspath(self.path.absolute()))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self.path}: not a readable video ({_reason(error)})") from None
        with container:
            stream = _video_stream(container)
            if stream is None:
                raise VideoError(f"{self.path}: no video stream in this file")
            rate = stream.average_rate or stream.guessed_rate
            if rate:
                self.fps = float(rate)
            yield from self._decode(av, container, stream)

    def _decode(self, av: Any, container: Any, stream: Any) -> Iterator[Loader]:
        packets = 0
        end: float | None = None
        try:
            for packet in container.demux(stream):
                # The packet without a time stamp and content that ends the stream flushes the decoder.
                if packet.dts is not None or packet.size:
                    packets += 1
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise _BrokenError("a damaged frame")
                    if frame.time is not None:
                        start = frame.time - float((stream.start_time or 0) * (stream.time_base or 0))
                        end = max(end or 0.0, start + 1.0 / self.fps)
                    yield partial(_upright, frame)
        except (av.FFmpegError, OSError) as error:
            raise _BrokenError(_reason(error)) from None
        if stream.frames > packets:
            raise _BrokenError(f"the header announces {stream.frames} frames")
        announced = _announced_seconds(container, stream)
        if stream.frames > 0 or announced is None or end is None:
            return
        if announced - end > max(0.5, 0.05 * announced):
            raise _BrokenError(f"the header announces {announced:.2f} s, the frames end at {end:.2f} s")


def _open(path: Path, folder_fps: float) -> _Folder | _File:
    if path.is_dir():
        return _Folder(path, folder_fps)
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from None
    if empty:
        raise VideoError(f"{path}: the file is empty")
    return _File(path, folder_fps)


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
            return float(Fraction(hours) * 3600 + Fraction(minutes) * 60 + Fraction(seconds))
        except ValueError:
            return None
    if len(container.streams) == 1 and container.duration:
        return float(container.duration) / 1e6
    return None


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    # `rotation` is counter-clockwise in degrees, like rot90; phones store multiples of 90.
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _read_image(path: Path) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise VideoError(_needs(path, "Pillow")) from None
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise _BrokenError(f"{path.name}: pixels of mode {image.mode}, expected 8 bits a channel")
            return np.array(image.convert("RGB"))
    # Pillow reports damaged files with any of these.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _BrokenError(f"{path.name}: {_reason(error)}") from None


def _spread_frames(path: Path, max_frames: int | None, accept_partial: bool) -> list[np.ndarray]:
    """At most FACE_SAMPLES frames, evenly spread, in one pass without knowing the length: whenever the list
    is full every other one is dropped and the step doubles.
    """
    samples: list[Loader] = []
    frames: list[np.ndarray] = []
    step = 1
    count = 0
    try:
        for load in _open(path, 25.0).frames():
            if count % step == 0:
                samples.append(load)
                if len(samples) > FACE_SAMPLES:
                    del samples[1::2]
                    step *= 2
            count += 1
            if max_frames is not None and count >= max_frames:
                break
    except _BrokenError as broken:
        _refuse_partial(path, count, broken, accept_partial)
    if not samples:
        raise VideoError(f"{path}: holds no frame")
    try:
        frames.extend(load() for load in samples)
    except _BrokenError as broken:
        _refuse_partial(path, len(frames), broken, accept_partial)
    return frames


def _refuse_partial(path: Path, count: int, broken: _BrokenError, accept_partial: bool) -> None:
    if count == 0:
        raise VideoError(f"{path}: no frame could be decoded ({broken})") from None
    if not accept_partial:
        raise VideoError(f"{path}: damaged or cut off after {count} readable frames ({broken})") from None


def _cut(frame: np.ndarray, box: CropBox | None, path: Path) -> np.ndarray:
    if box is None:
        return frame
    height, width = frame.shape[:2]
    if box.x + box.width > width or box.y + box.height > height:
        raise VideoError(f"{path}: crop {box} reaches outside the {width}x{height} frame")
    return frame[box.y : box.y + box.height, box.x : box.x + box.width]


def _target_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    return height, width


def _wanted_indices(indices: Sequence[int] | np.ndarray) -> np.ndarray:
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or wanted.size == 0 or wanted.dtype.kind not in "iu" or wanted.min() < 0:
        raise ValueError(f"indices must be a non-empty row of integers >= 0, got {indices!r}")
    return wanted


def _needs(path: Path, package: str) -> str:
    return f"{path}: needs {package}, which the extra `video` brings: pip install 'ifdd-kernels[video]'"


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
