"""Common interface of files and folders: pictures, one after the other, with their times."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ifdd.text import printable


class PictureError(Exception):
    """Pictures are damaged or missing; the text says how, without the path of the video."""


class Picture(NamedTuple):
    """A picture that a player shows from `start` to `stop`, in seconds after the first one.

    `load` converts it to uint8 RGB (H, W, 3), upright; pictures that are skipped are never converted. Where
    `fragile` is set, that is when damage shows: `load` may raise `PictureError`.
    """

    start: float
    stop: float
    load: Callable[[], np.ndarray]
    fragile: bool = False


class Source(ABC):
    """Pictures of one video.

    Attributes:
        path: of the video.
        fps: average rate.
        announced: number of pictures by the header, None where it has none.
        first_stamp: what the file calls the time of the first picture given, in seconds; None before it, and
            where files have no such times.
        remarks: what a reader should know, but nothing is missing.
        lost: pictures left out so far because they are damaged.
        loss: what was wrong with the first of these; or why pictures are missing at the end.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self.announced: int | None = None
        self.first_stamp: float | None = None
        self.remarks: list[str] = []
        self.lost = 0
        self.loss: str | None = None

    @abstractmethod
    def pictures(self) -> Iterator[Picture]:
        """The undamaged pictures in the order they are shown; `loss` is set before the first one behind the
        damage, at the latest when the iterator is exhausted.

        Raises:
            VideoError: nothing can be read at all.
        """

    def close(self) -> None:  # noqa: B027 (a folder holds nothing open)
        """Closes the file; `pictures` cannot go on."""


def special_file(path: Path) -> str | None:
    """The kind of thing at `path`; None for a file. To be asked first: opening a pipe may wait forever.

    Raises:
        OSError: nothing is there, or it may not be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((kind for is_kind, kind in kinds if is_kind(mode)), "a device")


def needs(path: str | os.PathLike[str], package: str) -> str:
    """The message for a missing package."""
    return (
        f"{printable(path)}: needs {package}, which the extra `video` brings: "
        "pip install 'ifdd-kernels[video]'"
    )
