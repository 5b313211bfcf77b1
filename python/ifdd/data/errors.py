"""Errors of the data package: one readable line each, naming the file and the reason."""

from __future__ import annotations

from ifdd.text import printable


class VideoError(ValueError):
    """A video that cannot be used; the message is one line with its path and the reason."""


class NoFaceError(VideoError):
    """A video without a face that could be followed.

    Args:
        finding: the file and what was looked at.
        advice: what to do about it on the command line.

    Attributes:
        finding: for those who advise otherwise.
    """

    def __init__(self, finding: str, advice: str) -> None:
        super().__init__(finding, advice)  # which brings it back in another process, too
        self.finding = finding

    def __str__(self) -> str:
        return "; ".join(self.args)


class DatasetError(ValueError):
    """A data set that is not laid out as expected; the message names the files and what was expected."""


class DatasetWarning(UserWarning):
    """Something about a data set that is worth knowing: one line, like an error."""


def reason(error: BaseException) -> str:
    """The text of an error of FFmpeg, Pillow or the system, on one line and without its number."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(text).split()))
