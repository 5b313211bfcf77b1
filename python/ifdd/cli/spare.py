"""Refuses to overwrite the inputs of a command."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ifdd.cli._commands import UsageError
from ifdd.data.folder import IMAGE_SUFFIXES
from ifdd.text import printable

__all__ = ["identity", "spare"]


def spare(outputs: Iterable[tuple[str, Path]], inputs: Iterable[tuple[str, str | os.PathLike[str]]]) -> None:
    """Refuses to write over what the command reads, whatever name or link leads there.

    Args:
        outputs: the option that names each, and its path.
        inputs: what each is ("a video") and its path; of a folder, its frames are meant.

    Raises:
        UsageError: an output is an input.
    """
    written = {identity(file): (option, file) for option, file in outputs if file.exists()}
    frames = {
        identity(file.parent): (option, file)
        for option, file in written.values()
        if file.suffix.lower() in IMAGE_SUFFIXES
    }
    if not written:
        return
    for what, path in inputs:
        found = (frames if os.path.isdir(path) else written).get(identity(Path(path)))  # noqa: PTH112
        if found is not None:
            option, file = found
            raise UsageError(f"{option}: {printable(file)} is {what} that this run reads")


def identity(path: Path) -> tuple[int, int] | str:
    """The same for all names of a file."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino
