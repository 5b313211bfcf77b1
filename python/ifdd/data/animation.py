"""Animated images through Pillow: WebP, which few builds of FFmpeg read, APNG, and GIF by any name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VideoError, reason
from .folder import FolderSource, animation_length, picture_pixels
from .source import Picture, PictureError, Source, needs


def image_source(path: Path, fps: float) -> Source:
    """The pictures of an image file: all of an animation, one of any other."""
    try:
        from PIL import Image
    except ImportError:
        raise VideoError(needs(path, "Pillow")) from None
    try:
        with Image.open(path) as image:
            pictures, pages = animation_length(image), int(getattr(image, "n_frames", 1))
            tiff = image.format == "TIFF"
    except Exception:
        return FolderSource(path, fps)  # which says what is wrong with it
    if pictures > 1:
        return _AnimationSource(path, fps, pictures)
    source = FolderSource(path, fps)
    if tiff and pages > 1:
        source.remarks.append(f"holds {pages} pages; the first is read")
    return source


class _AnimationSource(Source):
    """Each picture builds on those before it, so reading ends at the first that is damaged.

    A picture that states no length is shown for `1 / fps` seconds.
    """

    def __init__(self, path: Path, fps: float, count: int) -> None:
        super().__init__(path, fps)
        self.announced = count

    def pictures(self) -> Iterator[Picture]:
        """See `Source.pictures`."""
        from PIL import Image

        assert self.announced is not None
        start, step = 0.0, 1.0 / self.fps
        try:
            with Image.open(self.path) as image:
                first = int(bool(image.info.get("default_image")))
                for place in range(self.announced):
                    pixels, seconds = _decode(image, first + place)
                    stop = start + (seconds if seconds > 0 else step)
                    yield Picture(start, stop, partial(np.asarray, pixels))
                    start = stop
                    self.fps = (place + 1) / stop
        except PictureError as error:
            self.lost += 1
            self.loss = str(error)


def _decode(image: Any, place: int) -> tuple[np.ndarray, float]:
    """One picture, and for how many seconds it is shown."""
    try:
        image.seek(place)
        return picture_pixels(image), float(image.info.get("duration") or 0) / 1000
    except PictureError:
        raise
    # As in `read_image`: no list of what decoders raise is complete.
    except Exception as error:
        raise PictureError(f"picture {place + 1}: {reason(error)}") from None
