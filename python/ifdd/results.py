"""Predictions as CSV and JSON, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import TextIO

from ifdd.outcomes import Outcome, VideoFailure, VideoPrediction, WindowResult, best, path_text


class Csv:
    """Rows of a CSV file: one for every window, and one with ``mean`` in the column ``window`` for every
    video. Videos that failed have no such row.
    """

    def __init__(self, file: TextIO, class_names: Sequence[str], heading: bool = True) -> None:
        self._class_names = tuple(class_names)
        self._file = file
        self._writer = csv.writer(file, lineterminator="\n")
        if heading:
            of_video = ["frames_read", "frames_announced", "frames_used", "seconds", "stretched", "damage"]
            first = ["path", "window", "start_seconds", "stop_seconds", "label"]
            self._writer.writerow([*first, *class_names, *of_video, "remarks"])
            file.flush()

    def add(self, outcome: Outcome) -> None:
        """Writes the row of one outcome."""
        if isinstance(outcome, VideoFailure):
            return
        if isinstance(outcome, WindowResult):
            window = outcome.prediction
            label = best(self._class_names, window.probabilities)
            span = [window.start_seconds, window.stop_seconds]
            row = [outcome.number, *span, label, *window.probabilities, *[""] * 7]
        else:
            footage = outcome.footage
            span = [outcome.windows[0].start_seconds, outcome.windows[-1].stop_seconds]
            announced = "" if footage.frames_announced is None else footage.frames_announced
            read = [footage.frames_read, announced, footage.frames_used, footage.seconds]
            words = [str(footage.stretched).lower(), footage.damage or "", " | ".join(footage.remarks)]
            row = ["mean", *span, outcome.label, *outcome.probabilities, *read, *words]
        self._writer.writerow([path_text(outcome.path), *row])
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
