"""Files that are there whole, or as they were before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

PART = ".*.[0-9]*.part"
"""Names of the parts that a killed writer leaves behind."""


@contextmanager
def part_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path`. What the block writes there takes the place of `path` when it ends well, after it
    has reached the disk, and is gone otherwise. A link stays one, and the file that it leads to is replaced.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    # Names of files have 255 bytes at most.
    part = target.with_name(f".{target.name[:60]}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file in UTF-8, with line ends as they are written, by the rule of :func:`part_of`."""
    with part_of(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file by the rule of :func:`part_of`."""
    with replacing(path) as file:
        file.write(text)
