"""JPEG files through simplejpeg, in about half of Pillow's time.

Both decode with libjpeg-turbo and the same settings (accurate inverse transform, smooth upsampling), so the
pixels are the same. Pillow stays the judge of everything that is not plain: see `read_jpeg`.
"""

from __future__ import annotations

import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ifdd.data.errors import DatasetWarning

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
"""Files that are tried, in small or capital letters."""

START, METADATA, SCAN = 0xD8, 0xE1, 0xDA
NOT_FRAMES = (0xC4, 0xC8, 0xCC)
"""Markers between those that begin a frame (0xC0 to 0xCF) and mean something else."""


@cache
def simplejpeg() -> Any:
    """The package, None where it is not installed: Pillow decodes then, in about twice the time."""
    try:
        import simplejpeg as package
    except Exception as error:  # made for another NumPy, say: no picture is damaged because of it
        if not (isinstance(error, ModuleNotFoundError) and error.name == "simplejpeg"):
            _warn_of(error)
        return None
    return package


def _warn_of(error: Exception) -> None:
    warnings.warn(
        f"simplejpeg is installed and cannot be imported ({error}): Pillow decodes JPEG frames, more slowly",
        DatasetWarning,
        stacklevel=3,
    )


def read_jpeg(path: Path, max_pixels: int) -> np.ndarray | None:
    """The pixels of a plain JPEG file, uint8 RGB (H, W, 3); None where Pillow has to look at it.

    That is where simplejpeg is not installed, or the file holds EXIF or XMP data, which may turn the picture,
    is not of one or three channels of 8 bits, is larger than `max_pixels`, is damaged in any way, or is not a
    JPEG file at all.

    Raises:
        OSError: the file cannot be read.
    """
    package = simplejpeg()
    if package is None:
        return None
    # Not Path.open, and no buffer: sixteen of these make a clip.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        data = file.read()
    if not data.startswith(bytes((0xFF, START))) or not _is_plain(data, max_pixels):
        return None
    try:
        pixels: np.ndarray = package.decode_jpeg(data)
    except ValueError:
        return None
    return pixels


def _is_plain(data: bytes, max_pixels: int) -> bool:
    """Walks through the segments before the first scan."""
    place, plain = 2, False
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == SCAN:
            return plain
        if marker == METADATA:
            return False
        if 0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            plain = bits == 8 and channels in (1, 3) and 0 < height * width <= max_pixels
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False
