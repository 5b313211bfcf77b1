"""Errors of the data package: one readable line each, naming the file and the reason."""

from __future__ import annotations

import os


class VideoError(ValueError):
    """A video that cannot be used; the message is one line with its path and the reason."""


class DatasetError(ValueError):
    """A data set that is not laid out as expected; the message names the files and what was expected."""


class DatasetWarning(UserWarning):
    """Something about a data set that is worth knowing: one line, like an error."""


def printable(name: str | os.PathLike[str]) -> str:
    """A path on one line that any terminal and any file takes: characters that are not printable, and bytes
    that are no UTF-8, appear as in Python's `repr`. Other names come back as they are.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(name))


def reason(error: BaseException) -> str:
    """What an error of FFmpeg, Pillow or the system says, on one line and without its number."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))
