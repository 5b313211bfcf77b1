"""Folders: the numbered images of a video, or the videos of a collection."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ifdd.text import counted, printable

from .errors import VideoError, reason
from .jpeg import JPEG_SUFFIXES, read_jpeg
from .source import Picture, PictureError, Source, needs, special_file

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm"),
)
"""Files that are frames of a folder, in small or capital letters."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".wmv", ".asf", ".flv", ".f4v"),
    *(".mpg", ".mpeg", ".mpe", ".m2v", ".mp2v", ".ts", ".mts", ".m2ts", ".vob", ".ogv", ".ogg", ".mxf"),
    *(".3gp", ".3g2", ".gif", ".y4m", ".mjpeg", ".mjpg", ".dv", ".rm", ".rmvb", ".nut"),
)
"""Files that `list_videos` takes for videos, in small or capital letters. `read_video` looks at the content
and takes any name."""

MAX_PIXELS = 1 << 25
"""Largest picture that is decoded, just above 7680x4320: a damaged header must not ask for all memory."""

_NUMBER = re.compile(r"\d+")  # in any script


class FolderSource(Source):
    """Images in the order of their numbers, or one image; `fps` is given, since nothing states it."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path, fps)
        self.files = frame_files(path) if path.is_dir() else [path]
        self.announced = len(self.files)

    def pictures(self) -> Iterator[Picture]:
        """One a file; opened when its pixels are asked for."""
        for place, file in enumerate(self.files):
            yield Picture(place / self.fps, (place + 1) / self.fps, partial(read_image, file), True)


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The images of `folder` in the order of their frame numbers: the last digits in the name without its
    suffix (`7.jpg`, `frame0007.png`, `clip12_frame0007.bmp`, `img_00007_face.webp`, `frame (7).tif`). An
    image that is alone needs no number. Hidden files, folders and other types are ignored.

    Raises:
        VideoError: no such folder, no image in it, an image without a number, or two with the same.
    """
    folder = Path(folder)
    files, folders, videos = [], 0, 0
    for entry in _entries(folder):
        suffix = Path(entry.name).suffix.lower()
        if _is_folder(entry):
            folders += 1
        elif suffix in IMAGE_SUFFIXES:
            files.append(entry.name)
        elif suffix in VIDEO_SUFFIXES:
            videos += 1
    if not files:
        raise VideoError(f"{printable(folder)}: {_what_instead(videos, folders)}")
    if len(files) == 1:
        return [folder / files[0]]
    numbered: dict[int, str] = {}
    for name in sorted(files):
        digits = _NUMBER.findall(Path(name).stem)
        if not digits:
            raise VideoError(
                f"{printable(folder)}: image '{printable(name)}' has no number in its name, "
                "so its place among the frames is unknown"
            )
        number = int(digits[-1])
        if number in numbered:
            both = f"'{printable(numbered[number])}' and '{printable(name)}'"
            raise VideoError(
                f"{printable(folder)}: frame {number} is there twice ({both}); "
                "the last number in a name is the number of its frame"
            )
        numbered[number] = name
    return [folder / numbered[number] for number in sorted(numbered)]


def holds_frames(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is a video: it holds more images than videos, of which they would be cover pictures.
    Hidden files are ignored.

    Raises:
        VideoError: the folder cannot be listed.
    """
    suffixes = [Path(entry.name).suffix.lower() for entry in _entries(Path(folder))]
    images, videos = (sum(s in kind for s in suffixes) for kind in (IMAGE_SUFFIXES, VIDEO_SUFFIXES))
    return images > videos


def list_videos(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """The video files of a folder (`VIDEO_SUFFIXES`), sorted by path. Hidden files and folders are ignored.

    Args:
        folder: where to look.
        recursive: looks into its folders, too. Links to folders are not followed.

    Returns:
        The paths, each beginning with `folder`.

    Raises:
        VideoError: the folder, or one in it, cannot be listed.
    """
    found: list[Path] = []
    for entry in _entries(Path(folder)):
        path = Path(folder) / entry.name
        if _is_folder(entry):
            if recursive and not entry.is_symlink():
                found += list_videos(path, recursive=True)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.append(path)
    return sorted(found)


def read_image(path: Path) -> np.ndarray:
    """One image as uint8 RGB (H, W, 3), upright by its EXIF orientation; of several pages the first.
    Transparency is dropped: the colour that a pixel states counts, however transparent it is.

    Raises:
        PictureError: it cannot be read; the text names the file, not its folder.
    """
    try:
        from PIL import Image
    except ImportError:
        raise VideoError(needs(path, "Pillow")) from None
    try:
        special = special_file(path)
        if special is not None:
            raise PictureError(f"{printable(path.name)}: {special}, expected a file")
        if path.suffix.lower() in JPEG_SUFFIXES and (pixels := read_jpeg(path, MAX_PIXELS)) is not None:
            return pixels
        with Image.open(path) as image:
            length = animation_length(image)
            if length > 1:
                raise PictureError(
                    f"an animation of {length} pictures, expected one; name the file itself to read it as a "
                    "video"
                )
            return picture_pixels(image)
    except PictureError as error:
        raise PictureError(f"{printable(path.name)}: {error}") from None
    # Whatever a damaged file makes a decoder of Pillow raise: no list of these errors has been complete.
    except Exception as error:
        raise PictureError(f"{printable(path.name)}: {reason(error)}") from None


def animation_length(image: Any) -> int:
    """Pictures of an open Pillow image that a viewer shows one after the other; 1 if it does not move. Pages
    of a TIFF and the second picture of a phone's JPEG are none.
    """
    if image.format not in ("WEBP", "PNG", "GIF", "AVIF"):
        return 1
    # A PNG may hold a picture for programs that show no animations.
    return int(getattr(image, "n_frames", 1)) - bool(image.info.get("default_image"))


def picture_pixels(image: Any) -> np.ndarray:
    """The pixels of an open Pillow image, see `read_image`.

    Raises:
        PictureError: too large, or not of 8 bits a channel.
    """
    from PIL import ExifTags, ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise PictureError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
    if image.mode.startswith(("I", "F")):
        raise PictureError(f"pixels of mode {image.mode}, expected 8 bits a channel")
    # Each of these steps would copy a picture that needs none of them.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise VideoError(f"{printable(folder)}: cannot list the folder ({reason(error)})") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, for example
        return False


def _what_instead(videos: int, folders: int) -> str:
    if videos:
        return f"holds {counted(videos, 'video')} and no frames: name a file in it"
    if folders:
        return f"holds {counted(folders, 'folder')} and no frames: name a video in it"
    return "no images in this folder"
