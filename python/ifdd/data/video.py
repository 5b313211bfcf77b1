"""Reading face videos: files through PyAV, animations and folders of numbered images through Pillow.

`open_video` gives one frame after the other and holds none; `read_video` collects frames in an array. Frames
are resized while decoding, so a long video never lies in memory at full size. Whatever goes wrong is a
`VideoError` of one line with the path and the reason.

What can be decoded counts, not what a header says. Damaged frames are left out with all that build on them,
and reading goes on behind them, as a player does; `VideoStream.damage` says so, and `strict=True` refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from ifdd.text import printable

from .animation import image_source
from .errors import VideoError, reason
from .face import find_face
from .ffmpeg import FileSource
from .folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FolderSource, frame_files, list_videos
from .region import CropBox, cut_out, parse_crop
from .resize import resize_frame
from .source import Picture, PictureError, Source, special_file

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Frame",
    "VideoError",
    "VideoFrames",
    "VideoStream",
    "count_frames",
    "frame_files",
    "list_videos",
    "locate_face",
    "open_video",
    "read_video",
]

FACE_SAMPLES = 16
"""Most frames looked at to find the face of a video (`crop="auto"`)."""

STILL = "a still picture: one frame, and the network reads motion"
"""The remark on a video of a single frame."""


@dataclass(frozen=True)
class VideoFrames:
    """A decoded video.

    Attributes:
        frames: uint8 RGB, (T, H, W, 3), T >= 1.
        fps: frames per second on average; for a folder of images the `folder_fps` passed to `read_video`.
        path: where it came from.
    """

    frames: np.ndarray
    fps: float
    path: Path


class Frame:
    """One frame of a video; made by `VideoStream`.

    Attributes:
        number: its place among the frames read, from 0.
        seconds: when a player shows it, counted from the first frame, by the time stamps of the file.
        stop_seconds: when the next one takes its place; of the last frame, when it ends.
    """

    __slots__ = ("_finish", "_load", "number", "seconds", "stop_seconds")

    def __init__(
        self,
        number: int,
        picture: Picture,
        finish: Callable[[np.ndarray], np.ndarray],
        load: Callable[[], np.ndarray],
    ) -> None:
        self.number = number
        self.seconds = picture.start
        self.stop_seconds = picture.stop
        self._load = load
        self._finish = finish

    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3): upright, cut and resized as the stream was told; converted at every call.

        Raises:
            VideoError: the crop reaches outside; in a stream with `only`, the image of a folder is damaged.
        """
        return self._finish(self._load())


class VideoStream:
    """The frames of a video, one at a time; made by `open_video`. Iterate once; memory does not grow.

    As a context manager it closes the file at the end of the block.

    Attributes:
        path: of the video.
        frames_read: frames given so far.
        end_seconds: end of the last of them, 0 before the first.
        damage: one line when frames are missing because they are damaged or cut off, else None. Final when
            the iteration has ended.
    """

    def __init__(
        self,
        source: Source,
        box: CropBox | None,
        size: tuple[int, int] | None,
        strict: bool,
        only: Collection[int] | None,
    ) -> None:
        self.path = source.path
        self.frames_read = 0
        self.end_seconds = 0.0
        self.damage: str | None = None
        self._source = source
        self._box = box
        self._size = size
        self._strict = strict
        self._only = only
        self._frames: Generator[Frame, None, None] | None = None
        self._sound = 0  # frames before the first damage

    def __enter__(self) -> VideoStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the iteration cannot go on."""
        if self._frames is None:
            self._frames = _nothing()
        self._frames.close()
        self._source.close()

    @property
    def fps(self) -> float:
        """Average frames per second, to report; times of frames do not follow from it. For a folder, and for
        files that state none, the `folder_fps` of `open_video`.
        """
        return self._source.fps

    @property
    def frames_announced(self) -> int | None:
        """Frames that the header announces (a folder: its images), None if it does not say. Not reliable."""
        return self._source.announced

    @property
    def first_stamp(self) -> float | None:
        """Time stamp of the first frame in the file, in seconds: its other streams count by the same
        clock. None before that frame was read, and where files have no such times.
        """
        return self._source.first_stamp

    @property
    def remarks(self) -> list[str]:
        """Remarks about the file that cost no frames, one per line. Complete after the iteration."""
        return self._source.remarks

    def __iter__(self) -> Iterator[Frame]:
        """The frames in the order they are shown.

        Raises:
            VideoError: see `open_video`.
            RuntimeError: iterated before, or closed.
        """
        if self._frames is not None:
            raise RuntimeError(f"{printable(self.path)}: a video stream can be iterated once")
        self._frames = self._read()
        return self._frames

    def _read(self) -> Generator[Frame, None, None]:
        for picture in self._source.pictures():
            load = picture.load
            if picture.fragile:
                if self._only is None or self.frames_read in self._only:
                    try:
                        pixels = picture.load()
                    except PictureError as error:
                        self._source.lost += 1
                        self._source.loss = self._source.loss or str(error)
                        self._refuse()
                        continue
                    load = partial(np.asarray, pixels)
                else:
                    load = partial(self._unchecked, picture)
            self._refuse()
            if self._source.loss is None:
                self._sound += 1
            number = self.frames_read
            self.frames_read += 1
            self.end_seconds = picture.stop
            yield Frame(number, picture, self._finish, load)
        self._refuse()
        loss = self._source.loss
        if self.frames_read == 0:
            problem = "holds no frame" if loss is None else f"no frame could be decoded ({loss})"
            raise VideoError(f"{printable(self.path)}: {problem}")
        if loss is None and self.frames_read == 1:
            self.remarks.append(STILL)
        if loss is not None:
            self.damage = self._describe(loss)
        elif self.frames_announced not in (None, self.frames_read):
            self.remarks.append(
                f"the header announces {self.frames_announced} frames, {self.frames_read} are shown"
            )

    def _refuse(self) -> None:
        """Raises on damage, if so asked."""
        loss = self._source.loss
        if not self._strict or loss is None:
            return
        if self.frames_read == 0:
            problem = f"no frame could be decoded ({loss})"
        elif self._only:  # those before may not have been looked at: their number says nothing
            problem = f"frame {self.frames_read} cannot be read ({loss})"
        else:
            problem = self._describe(loss)
        raise VideoError(f"{printable(self.path)}: {problem}")

    def _describe(self, loss: str) -> str:
        text = f"damaged or cut off after {self._sound} readable frames ({loss})"
        behind = self.frames_read - self._sound
        if behind:
            text += f"; {self._source.lost} left out, {behind} readable frames behind them"
        return text

    def _unchecked(self, picture: Picture) -> np.ndarray:
        try:
            return picture.load()
        except PictureError as error:
            raise VideoError(f"{printable(self.path)}: {error}") from None

    def _finish(self, pixels: np.ndarray) -> np.ndarray:
        if self._box is not None:
            pixels = cut_out(pixels, self._box, printable(self.path))
        return pixels if self._size is None else resize_frame(pixels, self._size)


def open_video(
    path: str | os.PathLike[str],
    crop: str | CropBox | Sequence[int] | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    folder_fps: float = 25.0,
    strict: bool = False,
    only: Collection[int] | None = None,
) -> VideoStream:
    """Opens a video file, or a folder of numbered images, to read frame by frame.

    Frames are upright: the display matrix of the file (rotations by 90 degrees and mirrorings) and the EXIF
    orientation of images are applied. Pixels that are not square stay as they are stored: the plain resize
    to the network's square does not keep the aspect ratio anyway. Interlaced frames are not separated, and
    transparency is dropped.

    Args:
        path: a video file, an image, or a folder as `frame_files` takes it.
        crop: region kept of every (upright) frame, before resizing: a `CropBox`, four integers, `"x,y,w,h"`,
            or `"auto"` to find the face (`ifdd.data.face.find_face`; reads the video a second time).
        size: side in pixels, or (height, width), that every frame is resized to: a plain resize (the aspect
            ratio is not kept, as in the original pipeline), bicubic with antialiasing. Without it the frames
            keep their size.
        folder_fps: rate of folders of images, and of files that state none.
        strict: raises on the first damage instead of leaving damaged frames out.
        only: numbers of the frames whose image will be taken; images of a folder that are not among them are
            never opened.

    Returns:
        `VideoStream`, an iterator of `Frame`.

    Raises:
        VideoError: there is nothing, not a video, no video stream, no face. During the iteration: no frame
            that can be decoded, and with `strict` any damage.
        ValueError: `crop`, `size` or `folder_fps` is not usable.
    """
    path = Path(path)
    if not 0 < folder_fps < float("inf"):
        raise ValueError(f"folder_fps must be positive, got {folder_fps}")
    target = _target_size(size)
    region = parse_crop(crop)
    box = _locate(path, None, strict) if region == "auto" else region
    return VideoStream(_source(path, folder_fps), box, target, strict, only)


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
    """Reads a video file, or a folder of numbered images, into an array.

    Args:
        path: as `open_video`.
        crop: as `open_video`.
        size: as `open_video`; without it, frames that differ are brought to the size of the first one.
        indices: frames to keep, in this order, repetition allowed; only these are converted and held.
            Decoding stops at the largest.
        max_frames: reads at most that many frames from the beginning; not together with `indices`.
        accept_partial: leaves damaged frames out instead of raising; without effect on `indices`, which must
            all be readable.
        folder_fps: rate reported for folders of images, and for files that state none.
        max_bytes: refuses to hold more than this many bytes of frames.

    Returns:
        VideoFrames with frames uint8 (T, H, W, 3).

    Raises:
        VideoError: nothing there, empty, not a video, no video stream, no frame, damaged or cut off (by an
            error of the decoder, a damaged frame, or bytes that are proved to be missing; a header that
            merely disagrees with the frames is not damage), no face found, a crop outside the image, too
            large, or an index beyond the end.
        ValueError: `size`, `indices` or `max_frames` is not usable.
    """
    wanted = None if indices is None else _wanted_indices(indices)
    if max_frames is not None and (max_frames < 1 or wanted is not None):
        raise ValueError(
            f"max_frames must be at least 1 and not come together with indices, got {max_frames}"
        )
    path = Path(path)
    target = _target_size(size)
    region = parse_crop(crop)
    box = _locate(path, max_frames, not accept_partial) if region == "auto" else region
    limit = max_frames if wanted is None else int(wanted.max()) + 1
    needed = None if wanted is None else set(wanted.tolist())
    strict = not accept_partial or wanted is not None

    kept: dict[int, np.ndarray] = {}
    held = 0
    with open_video(path, box, size=size, folder_fps=folder_fps, strict=strict, only=needed) as stream:
        for frame in stream:
            if needed is None or frame.number in needed:
                image = frame.image()
                if target is None:
                    target = (image.shape[0], image.shape[1])
                kept[frame.number] = resize_frame(image, target)
                held += kept[frame.number].nbytes
                if held > max_bytes:
                    raise VideoError(
                        f"{printable(path)}: more than {max_bytes / 2**30:.3g} GiB of "
                        f"{target[1]}x{target[0]} frames; pass size= to resize while decoding, or max_frames="
                    )
            if limit is not None and frame.number + 1 >= limit:
                break
        count = stream.frames_read
    if wanted is None:
        order: Sequence[int] = range(count)
    elif int(wanted.max()) < count:
        order = wanted.tolist()
    else:
        raise VideoError(
            f"{printable(path)}: frame {int(wanted.max())} was asked for, but it has only {count} frames"
        )
    return VideoFrames(np.stack([kept[i] for i in order]), stream.fps, path)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames that `read_video` would return for `path`.

    Files are decoded for it (headers are not to be trusted), without converting any frame; folders are only
    listed.

    Raises:
        VideoError: as `read_video`.
    """
    with open_video(path, strict=True, only=()) as stream:
        for _ in stream:
            pass
        return stream.frames_read


def locate_face(
    path: str | os.PathLike[str], max_frames: int | None = None, accept_partial: bool = False
) -> CropBox:
    """The region that `read_video(path, crop="auto")` keeps: `ifdd.data.face.find_face` on at most 16 frames,
    evenly spread over the video (or its first `max_frames` frames).

    Args:
        path: as for `read_video`.
        max_frames: frames to look at from the beginning; all without it.
        accept_partial: also looks at a video that is damaged or cut off.

    Returns:
        `CropBox` on the upright frame.

    Raises:
        VideoError: as `read_video`.
    """
    return _locate(Path(path), max_frames, not accept_partial)


def _locate(path: Path, max_frames: int | None, strict: bool) -> CropBox:
    return find_face(_spread_frames(path, max_frames, strict), name=printable(path))


def _spread_frames(path: Path, max_frames: int | None, strict: bool) -> list[np.ndarray]:
    """At most FACE_SAMPLES frames, evenly spread, in one pass without knowing the length: whenever the list
    is full every other one is dropped and the step doubles.
    """
    samples: list[Frame] = []
    step = 1
    with open_video(path, strict=strict) as stream:
        for frame in stream:
            if frame.number % step == 0:
                samples.append(frame)
                if len(samples) > FACE_SAMPLES:
                    del samples[1::2]
                    step *= 2
            if max_frames is not None and frame.number + 1 >= max_frames:
                break
    return [frame.image() for frame in samples]


def _nothing() -> Generator[Frame, None, None]:
    yield from ()


def _source(path: Path, fps: float) -> Source:
    if path.is_dir():
        return FolderSource(path, fps)
    try:
        special = special_file(path)
        empty = path.stat().st_size == 0
    except OSError as error:
        raise VideoError(f"{printable(path)}: {reason(error)}") from None
    if special is not None:
        raise VideoError(f"{printable(path)}: {special}, expected a file or a folder of frames")
    if empty:
        raise VideoError(f"{printable(path)}: the file is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return image_source(path, fps)
    return FileSource(path, fps)


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
