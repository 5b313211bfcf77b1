"""Predictions as CSV and JSON, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import TextIO

from ifdd.outcomes import (
    Outcome,
    VideoFailure,
    VideoPrediction,
    WindowPrediction,
    WindowResult,
    best,
    path_text,
)


class Csv:
    """Rows of a CSV file: one for every window, and one with ``mean`` in the column ``window`` for every
    video, or for every face of a video in which faces were followed, the most prominent first. Videos that
    failed have no such row. ``box`` is that of a window: x,y,w,h.
    """

    def __init__(self, file: TextIO, class_names: Sequence[str], heading: bool = True) -> None:
        self._class_names = tuple(class_names)
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        if heading:
            of_video = ["frames_read", "frames_announced", "frames_used", "seconds", "stretched", "damage"]
            first = ["path", "window", "start_seconds", "stop_seconds", "label"]
            self._writer.writerow([*first, *class_names, *of_video, "remarks", "face", "box"])
            file.flush()

    def add(self, outcome: Outcome) -> None:
        """Writes the row of one outcome."""
        if isinstance(outcome, VideoFailure):
            return
        if isinstance(outcome, WindowResult):
            window = outcome.prediction
            place = [
                "" if window.face is None else window.face,
                "" if window.box is None else str(window.box),
            ]
            self._write(outcome.path, outcome.number, [window], window.probabilities, [""] * 7, place)
            return
        footage = outcome.footage
        announced = "" if footage.frames_announced is None else footage.frames_announced
        read = [footage.frames_read, announced, footage.frames_used, footage.seconds]
        words = [str(footage.stretched).lower(), footage.damage or "", " | ".join(footage.remarks)]
        for face in outcome.faces:
            self._write(
                outcome.path, "mean", face.windows, face.probabilities, [*read, *words], [face.face, ""]
            )
        if not outcome.faces:
            self._write(
                outcome.path, "mean", outcome.windows, outcome.probabilities, [*read, *words], ["", ""]
            )

    def _write(
        self,
        path: str,
        number: int | str,
        windows: Sequence[WindowPrediction],
        probabilities: Sequence[float],
        of_video: Sequence[object],
        place: Sequence[object],
    ) -> None:
        span = [windows[0].start_seconds, windows[-1].stop_seconds]
        label = best(self._class_names, probabilities)
        self._writer.writerow([path_text(path), number, *span, label, *probabilities, *of_video, *place])
        self._file.flush()


class JsonArray:
    """A JSON array of :meth:`ifdd.outcomes.VideoPrediction.to_dict`, written as the videos come."""

    END = "\n]\n"

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._count = 0

    def add(self, outcome: Outcome) -> None:
        """Writes a video; windows and failures are left out."""
        if isinstance(outcome, VideoPrediction):
            entry = json.dumps(outcome.to_dict(), indent=2).replace("\n", "\n  ")
            self._file.write(f"{',' if self._count else '['}\n  {entry}")
            self._file.flush()
            self._count += 1

    def close(self) -> None:
        """Ends the array."""
        self._file.write(self.END if self._count else "[]\n")
        self._file.flush()
