"""Logs the work of a process of the GPU check, item by item, in the common log.

A process that hangs or dies cannot say what it was at. So it says it before: a row ``started`` with the item
(a case, a test) and the part of it (a contender), and a row ``finished`` when the item is over. Whoever
started the process (:mod:`benchmarks.gpu.stages`) finds the culprit there, writes its ``finished`` row and
starts the process again, which then passes over what is finished and the parts that were lost. A second call
of the check does the same, and runs again what merely failed in the first.

No torch here: tests and the check itself use this without its import.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from benchmarks.suite import results
from benchmarks.suite.results import Row, Writer

LOG, STAGE, SOURCES, END = "IFDD_LOG", "IFDD_STAGE", "IFDD_SOURCES", "IFDD_LOG_END"
"""Environment variables of a stage's process: the log, the stage's name, the digest of the sources that its
items depend on, and how many bytes of the log were there when it began. What is finished is read up to there:
later rows are the process's own, and processes that share a stage must see the same."""

DEVICE_LOST = 86
"""Exit code of a process that leaves because the device answers every call with an error; the item that met
it first has a ``finished`` row."""


class Journal:
    """The log as a stage's process sees it; without a path nothing is written or known."""

    def __init__(self, path: Path | None = None, stage: str = "", sources: str = "", end: int | None = None):
        self.path, self.stage, self.sources = path, stage, sources
        self._writer = Writer(path) if path is not None else None
        rows = results.read(path, end=end) if path is not None and path.exists() else []
        # What merely failed in an earlier call comes again: tests and benchmarks, which the digest does not
        # cover, may have been mended. What hung, crashed or lost the device does not: it costs too much.
        call = max((place for place, row in enumerate(rows) if row["kind"] == "start"), default=-1)
        forgotten = {place for place, row in enumerate(rows[: call + 1]) if row.get("status") == "failed"}
        self._rows = [
            row
            for place, row in enumerate(rows)
            if _ended(row, stage, sources) and row["status"] != "cut" and place not in forgotten
        ]
        libraries = [row for row in rows if row["kind"] == "library" and "facts" in row]
        #: Where the timer of :meth:`start` shows where the process stands; a descriptor or a file.
        self.stacks: int | TextIO | None = sys.__stderr__
        #: What the machine is, as the first process of the check found out; None outside of a check.
        self.facts: Row | None = libraries[-1]["facts"] if libraries else None

    @classmethod
    def of_process(cls) -> Journal:
        """The one that the environment names."""
        path = os.environ.get(LOG)
        if not path:
            return cls()
        end = os.environ.get(END)
        return cls(
            Path(path), os.environ[STAGE], os.environ.get(SOURCES, ""), int(end) if end is not None else None
        )

    def finished(self) -> set[str]:
        """Items that need not run again."""
        return {row["item"] for row in self._rows if not row["part"]}

    def lost(self, item: str) -> dict[str, str]:
        """Parts of an item at which a process was lost, and how."""
        return {row["part"]: row["detail"] for row in self._rows if row["part"] and row["item"] == item}

    def start(self, item: str, part: str = "", limit_s: float | None = None) -> None:
        """Says what comes next. Once a limit is over, the process shows where it stands and ends."""
        if self._writer is None:
            return
        self._writer.write(
            "started", stage=self.stage, item=item, part=part, limit_s=limit_s, at_ms=_now_ms(),
            pid=os.getpid(), sources=self.sources,
        )  # fmt: skip
        if limit_s is not None:
            self.guard(limit_s)

    def guard(self, limit_s: float) -> None:
        """Ends the process after so many seconds, until the next item ends.

        By a thread of C: it works where Python waits inside a call that never returns, lock and all.
        """
        faulthandler.dump_traceback_later(limit_s, exit=True, file=self.stacks or sys.stderr)

    def finish(self, item: str, status: str = "ok", detail: str = "", part: str = "") -> None:
        """The item is over: "ok", or "failed" with the reason. A part: the item goes on without it."""
        if self._writer is None:
            return
        faulthandler.cancel_dump_traceback_later()
        end(self._writer, self.stage, item, part, status, detail, self.sources)

    def leave(self, item: str, part: str, detail: str) -> None:
        """Ends this process, whose device is lost; a new one goes on after this item or part."""
        self.finish(item, "faulted", detail, part)
        if self._writer is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            # Without destructors: those of CUDA objects would fail, or wait.
            os._exit(DEVICE_LOST)

    @contextmanager
    def item(self, item: str, limit_s: float | None = None) -> Iterator[None]:
        """An item of one part; what it raises makes it "failed" and is raised on."""
        self.start(item, "", limit_s)
        try:
            yield
        except Exception as error:
            self.finish(item, "failed", f"{type(error).__name__}: {error}"[:500])
            raise
        self.finish(item)


def end(
    writer: Writer, stage: str, item: str, part: str, status: str, detail: str, sources: str = ""
) -> None:
    """Writes the row of an item that ended: by itself, or by whoever found the process dead."""
    writer.write(
        "finished", stage=stage, item=item, part=part, status=status, detail=detail[:500], sources=sources
    )


def _ended(row: Row, stage: str, sources: str) -> bool:
    return row["kind"] == "finished" and (row["stage"], row.get("sources", "")) == (stage, sources)


def bad(path: Path, stage: str, sources: str) -> list[str]:
    """Items and parts of a stage whose last end in the log was a bad one, with these sources."""
    rows = results.read(path, "finished") if path.exists() else []
    last = {(row["item"], row["part"]): row for row in rows if _ended(row, stage, sources)}
    return [ending(row) for row in last.values() if row["status"] not in ("ok", "cut")]


class Tail:
    """Follows the rows of one stage: what its processes are at, and what went wrong."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self._place = path.stat().st_size if path.exists() else 0
        #: Items that began and did not end, by name; the row is that of the last part.
        self.running: dict[str, Row] = {}
        #: Items that ended, by how, in order: "pool_tokens (block 0), ... / native: hung ...".
        self.wrong: list[str] = []
        self.count = 0

    def update(self) -> None:
        """Reads what was written since."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        # The last line may be in the making.
        text = text[: text.rfind(b"\n") + 1]
        self._place += len(text)
        for row in results.parse(text):
            if row.get("stage") != self.stage:
                continue
            if row["kind"] == "started":
                self.running[row["item"]] = row
            elif row["kind"] == "finished":
                self.running.pop(row["item"], None)
                self.count += 1
                if row["status"] != "ok":
                    self.wrong.append(ending(row))

    def overdue(self, grace_s: float) -> bool:
        """Whether something runs that should have ended itself."""
        limits = [(row, row["limit_s"]) for row in self.running.values() if row["limit_s"] is not None]
        return any(seconds_since(row) > limit + grace_s for row, limit in limits)


def _now_ms() -> int:
    """A clock that all processes share and nobody sets; a whole number, which rows keep as it is."""
    return int(1000 * time.monotonic())


def seconds_since(started: Row) -> float:
    """Seconds since a row ``started`` was written."""
    return 1e-3 * (_now_ms() - int(started["at_ms"]))


def name(row: Row) -> str:
    """Item and part of a row."""
    return f"{row['item']} / {row['part']}" if row["part"] else str(row["item"])


def ending(row: Row) -> str:
    """How an item or part ended, for people."""
    return f"{name(row)}: {row['status']}, {row['detail']}"
