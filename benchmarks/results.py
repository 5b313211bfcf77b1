"""Result files: JSON lines that are only ever appended to, so that a run that dies keeps what it measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]

KINDS = ("machine", "time", "skipped", "failed", "overhead", "profile", "stage")
"""What a row can be: the machine's rates, a measurement, one that was left out, one whose result was wrong or
that broke, calling overhead, a part's share of a profile, a stage of the GPU check."""

KEY = ("case", "label", "batch", "precision", "pass", "contender", "mode")
"""Fields that say what was measured; equal in two files for the same measurement."""


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row measured."""
    return tuple(row.get(name) for name in KEY)


class Writer:
    """Appends rows; each is on disk before the next one is measured."""

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
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row

    def _close_cut_line(self) -> None:
        """A run that died in the middle of a line must not spoil the first one of the next."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _rounded(value: Any) -> Any:
    """Six digits: more are noise, and the file is read by people too."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return value


def read(path: Path, kind: str | None = None) -> list[Row]:
    """Rows of a file, of one kind or all. Lines that were cut off are left out."""
    return [row for row in _rows(path) if kind is None or row["kind"] == kind]


def _rows(path: Path) -> Iterator[Row]:
    with path.open() as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and "kind" in row:
                yield row


def latest(rows: list[Row]) -> dict[tuple[Any, ...], Row]:
    """The last row of each measurement: a file that was appended to twice has the newer one."""
    return {key(row): row for row in rows}
