"""The list of the videos that a training left out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ifdd.data.datasets.videos import LeftOut
from ifdd.text import printable

COLUMNS = ("split", "path", "label", "reason")

Row = list[object]


class SkippedVideos:
    """Counts what was left out, and writes it to a CSV file as it becomes known; without any there is no
    file.

    A training that goes on keeps the lines that are there.

    Args:
        file: where to write; None only counts.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: dict[tuple[str, str], None] = {}
        self._pending: list[Row] = []
        self._read = False

    def add(self, split: str, videos: Sequence[LeftOut], first_label: int = 0) -> None:
        """Writes down the videos of a split that are not there yet, with labels that count as in their
        list.
        """
        self._read_once()
        for video, reason in videos:
            self._note([split, printable(video.path), first_label + video.label, reason])
        self._write()

    def take(self) -> list[Row]:
        """The videos noted since the last call, where they are not written: for the process that writes."""
        rows, self._pending = self._pending, []
        return rows

    def merge(self, rows: Sequence[Row]) -> None:
        """Writes down what another process noted."""
        self._read_once()
        for row in rows:
            self._note(row)
        self._write()

    def _note(self, row: Row) -> None:
        key = (str(row[0]), str(row[1]))
        if key not in self._known:
            self._known[key] = None
            self._pending.append(row)

    def _write(self) -> None:
        # The folder of a training may be made later than its data is looked at.
        if not self._pending or self.file is None or not self.file.parent.is_dir():
            return
        header = [] if self.file.exists() else [COLUMNS]
        with self.file.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file, lineterminator="\n").writerows([*header, *self._pending])
        self._pending.clear()

    def summary(self) -> str | None:
        """One line, if there were any."""
        if not self._known:
            return None
        listed = "" if self.file is None else f", listed in {printable(self.file)}"
        count = len(self._known)
        return f"{count} {'video was' if count == 1 else 'videos were'} left out{listed}"

    def _read_once(self) -> None:
        if self._read or self.file is None or not self.file.is_file():
            return
        self._read = True
        with self.file.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                self._known[(row.get("split") or "", row.get("path") or "")] = None
