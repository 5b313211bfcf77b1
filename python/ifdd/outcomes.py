"""Results of a prediction: windows, videos, failures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ifdd.data.face import CropBox
from ifdd.streaming import Footage
from ifdd.text import printable


@dataclass(frozen=True)
class WindowPrediction:
    """One window of a video.

    Attributes:
        start_seconds, stop_seconds: its place in the video; the end is not part of it.
        probabilities: (K,): softmax of the logits.
        logits: (K,).
        face, box: where faces were followed, the number of the track and the region that was cut out of the
            window's middle frame.
    """

    start_seconds: float
    stop_seconds: float
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    face: int | None = None
    box: CropBox | None = None

    @classmethod
    def of_logits(
        cls,
        start: float,
        stop: float,
        logits: Sequence[float],
        face: int | None = None,
        box: CropBox | None = None,
    ) -> WindowPrediction:
        """Computes the probabilities."""
        return cls(start, stop, _softmax(logits), tuple(logits), face, box)

    def place(self) -> dict[str, Any]:
        """``face`` and ``box`` in plain types; nothing where no face was followed."""
        return {} if self.face is None or self.box is None else {"face": self.face, "box": list(self.box)}


@dataclass(frozen=True)
class FacePrediction:
    """One person of a video: ``face``, the number of the track, the windows it was read in, and the softmax
    of the mean of their logits (K,).
    """

    face: int
    windows: tuple[WindowPrediction, ...]
    probabilities: tuple[float, ...]

    @property
    def prominence(self) -> int:
        """Pixels of the boxes of all windows."""
        return sum(window.box.width * window.box.height for window in self.windows if window.box is not None)

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Plain types; without the windows."""
        return {
            "face": self.face,
            "label": best(class_names, self.probabilities),
            "probabilities": dict(zip(class_names, self.probabilities, strict=True)),
            "windows": len(self.windows),
            "start_seconds": self.windows[0].start_seconds,
            "stop_seconds": max(window.stop_seconds for window in self.windows),
        }


@dataclass(frozen=True)
class VideoPrediction:
    """A whole video.

    Attributes:
        path: the video.
        class_names: one per probability.
        windows: the predictions of its windows, in order.
        probabilities: (K,): softmax of the mean of the windows' logits.
        footage: how much of the video was read.
        faces: where faces were followed, each of them, the most prominent first; the video's
            probabilities are those of that one.
    """

    path: str
    class_names: tuple[str, ...]
    windows: tuple[WindowPrediction, ...]
    probabilities: tuple[float, ...]
    footage: Footage
    faces: tuple[FacePrediction, ...] = ()

    @classmethod
    def of_windows(
        cls,
        path: str,
        class_names: tuple[str, ...],
        windows: Sequence[WindowPrediction],
        footage: Footage,
    ) -> VideoPrediction:
        """From its windows."""
        by_face: dict[int, list[WindowPrediction]] = {}
        for window in windows:
            if window.face is not None:
                by_face.setdefault(window.face, []).append(window)
        faces = [FacePrediction(face, tuple(its), _joint(its)) for face, its in by_face.items()]
        faces.sort(key=lambda face: (-face.prominence, face.face))
        probabilities = faces[0].probabilities if faces else _joint(windows)
        return cls(path, class_names, tuple(windows), probabilities, footage, tuple(faces))

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
                    **window.place(),
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
            **({"faces": [face.to_dict(self.class_names) for face in self.faces]} if self.faces else {}),
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
"""Item of a stream of results: the windows of a video, then how the video ended."""


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


def _joint(windows: Sequence[WindowPrediction]) -> tuple[float, ...]:
    """Probabilities of several windows. Sums of math.fsum are exact: however the windows came, the result is
    the same to the last bit.
    """
    columns = zip(*(window.logits for window in windows), strict=True)
    return _softmax([math.fsum(column) / len(windows) for column in columns])


def _softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """In float64, value by value: vectorised functions round by a value's place in the array."""
    largest = max(logits)
    shares = [math.exp(value - largest) for value in logits]
    total = math.fsum(shares)
    return tuple(share / total for share in shares)
