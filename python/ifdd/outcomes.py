"""What a prediction gives: windows, videos, failures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ifdd.streaming import Footage
from ifdd.text import printable


@dataclass(frozen=True)
class WindowPrediction:
    """One window of a video.

    Attributes:
        start_seconds, stop_seconds: its place in the video; the end is not part of it.
        probabilities: (K,): softmax of the logits.
        logits: (K,).
    """

    start_seconds: float
    stop_seconds: float
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]

    @classmethod
    def of_logits(cls, start: float, stop: float, logits: Sequence[float]) -> WindowPrediction:
        """From the logits alone."""
        return cls(start, stop, _softmax(logits), tuple(logits))


@dataclass(frozen=True)
class VideoPrediction:
    """A whole video.

    Attributes:
        path: the video.
        class_names: one per probability.
        windows: the predictions of its windows, in order.
        probabilities: (K,): softmax of the mean of the windows' logits.
        footage: how much of the video was read.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[WindowPrediction, ...]
    probabilities: tuple[float, ...]
    footage: Footage

    @classmethod
    def of_windows(
        cls,
        path: str,
        class_names: tuple[str, ...],
        windows: Sequence[WindowPrediction],
        footage: Footage,
    ) -> VideoPrediction:
        """From its windows."""
        # Sums of math.fsum are exact: however the windows came, the result is the same to the last bit.
        mean = [
            math.fsum(column) / len(windows)
            for column in zip(*(window.logits for window in windows), strict=True)
        ]
        return cls(path, class_names, tuple(windows), _softmax(mean), footage)

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return best(self.class_names, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON in any encoding.

        ``path`` is text. A path that is not text, because some of its bytes are not UTF-8, shows these as
        ``\\xNN`` there, and ``path_bytes`` holds all of them in hexadecimal.
        """
        return {
            **path_to_dict(self.path),
            **self.summary(),
            "windows": [
                {
                    "start_seconds": window.start_seconds,
                    "stop_seconds": window.stop_seconds,
                    "probabilities": dict(zip(self.class_names, window.probabilities, strict=True)),
                }
                for window in self.windows
            ],
        }

    def summary(self) -> dict[str, Any]:
        """All of :meth:`to_dict` but path and windows."""
        footage = self.footage
        return {
            "label": self.label,
            "probabilities": dict(zip(self.class_names, self.probabilities, strict=True)),
            "frames_read": footage.frames_read,
            "frames_announced": footage.frames_announced,
            "frames_used": footage.frames_used,
            "seconds": footage.seconds,
            "stretched": footage.stretched,
            "damage": footage.damage,
            "remarks": list(footage.remarks),
        }


@dataclass(frozen=True)
class VideoFailure:
    """A video without a prediction.

    Attributes:
        path: the video.
        error: the reason.
        windows: how many of its windows the network had read.
    """

    path: str
    error: Exception
    windows: int = 0


@dataclass(frozen=True)
class WindowResult:
    """Window ``number`` of a video, before the video has ended; ``part`` of it, 0 to 1, was read by then
    (None where its length is not known).
    """

    path: str
    number: int
    prediction: WindowPrediction
    part: float | None = None


@dataclass(frozen=True)
class Begun:
    """A video to predict; its first windows if an earlier run has read them; ``error`` if it is known to be
    none.
    """

    path: str | os.PathLike[str]
    windows: tuple[WindowPrediction, ...] = ()
    error: Exception | None = None


Outcome = WindowResult | VideoPrediction | VideoFailure
"""What comes of a stream of videos: windows, and after those of a video how it ended."""


def best(class_names: Sequence[str], probabilities: Sequence[float]) -> str:
    """Name of the most probable class."""
    return class_names[max(range(len(class_names)), key=probabilities.__getitem__)]


def path_text(path: str) -> str:
    """`path` as text in any Unicode encoding: bytes that are not UTF-8 become ``\\xNN``."""
    return path if _is_text(path) else printable(path)


def path_to_dict(path: str) -> dict[str, str]:
    """``path``, and ``path_bytes`` where the path is not text."""
    exact = {} if _is_text(path) else {"path_bytes": os.fsencode(path).hex()}
    return {"path": path_text(path), **exact}


def path_of_dict(entry: dict[str, Any]) -> str:
    """The path that :func:`path_to_dict` was given."""
    if "path_bytes" in entry:
        return os.fsdecode(bytes.fromhex(entry["path_bytes"]))
    return str(entry["path"])


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """In float64, value by value: vectorised functions round by a value's place in the array."""
    largest = max(logits)
    shares = [math.exp(value - largest) for value in logits]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)
