"""Result files: JSON lines that are only ever appended to, so that a run that dies keeps what it measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

KINDS = (
    *("machine", "time", "checked", "skipped", "failed", "overhead", "profile"),
    *("start", "library", "stage", "started", "finished"),
)
"""The kinds of rows: the machine's rates, a measurement, a result that was compared and not timed, one that
was left out, one that was wrong or broke, calling overhead, a part's share of a profile; of the GPU check:
where it runs, the native library, a stage, an item of a stage that begins, one that ended."""

KEY = ("case", "label", "batch", "precision", "pass", "contender", "mode")
"""Fields that say what was measured; equal in two files for the same measurement."""


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The measurement of a row."""
    return tuple(row.get(name) for name in KEY)


class Writer:
    """Appends rows; each is in the file before the next one is measured.

    A row is one write at the end of the file, so that several processes can share it.
    """

    def __init__(self, path: Path, common: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.common = dict(common or {})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._close_cut_line()

    def write(self, kind: str, **fields: Any) -> Row:
        """Appends one row of a kind of :data:`KINDS`, with the common fields behind its own."""
        if kind not in KINDS:
            raise ValueError(f"results: kind must be one of {KINDS}, got {kind!r}")
        row = {"kind": kind, **fields, **self.common}
        line = json.dumps({name: _rounded(value) for name, value in row.items()})
        self._append(line.encode() + b"\n", to_disk=kind not in ("started", "finished"))
        return row

    def _append(self, line: bytes, to_disk: bool) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while line:  # a disk that fills up takes a part
                line = line[os.write(file, line) :]
            if to_disk:
                os.fsync(file)
        finally:
            os.close(file)

    def _close_cut_line(self) -> None:
        """A run that died in the middle of a line must not spoil the first one of the next."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                whole = file.read(1) == b"\n"
            if not whole:
                self._append(b"\n", to_disk=True)


def _rounded(value: Any) -> Any:
    """Six digits: more are noise, and the file is read by people too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return value


def read(path: Path, kind: str | None = None, end: int | None = None) -> list[Row]:
    """Rows of a file or its first ``end`` bytes, of one kind or all. Lines that were cut off are left out."""
    with path.open("rb") as file:
        return [row for row in parse(file.read(end)) if kind is None or row["kind"] == kind]


def parse(text: bytes) -> Iterator[Row]:
    """Rows of a piece of a file."""
    for line in text.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # cut off, maybe inside of a character
            continue
        if isinstance(row, dict) and "kind" in row:
            yield row


def latest(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    """The last row of each measurement: a file that was appended to twice has the newer one."""
    return {key(row): row for row in rows}
