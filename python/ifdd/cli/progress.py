"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from ifdd.outcomes import Outcome, WindowResult
from ifdd.text import counted


class Progress:
    """Videos done, windows a second and the time that remains; a context manager. Silent without a terminal.

    What is printed meanwhile appears above the bar.
    """

    def __init__(self, videos: int, *, shown: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._videos = videos
        self._done = 0
        self._windows = 0
        self._started = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("remaining"),
            console=Console(stderr=True),
            transient=True,
            disable=not (shown and sys.stderr.isatty()),
            # A pipe or a file must get the bytes it would get without a bar.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=max(1, videos))

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def skip(self, videos: int) -> None:
        """Counts videos that an earlier run has done."""
        self._done += videos
        self._update(0.0)

    def show(self, outcome: Outcome) -> None:
        """Counts one outcome."""
        if isinstance(outcome, WindowResult):
            self._windows += 1
            self._update(min(outcome.part or 0.0, 1.0))
        else:
            self._done += 1
            self._update(0.0)

    def _update(self, part: float) -> None:
        if self._bar.disable:
            return
        rate = self._windows / max(time.monotonic() - self._started, 1e-3)
        text = f"{self._done} of {counted(self._videos, 'video')}, {rate:.1f} windows/s,"
        self._bar.update(self._task, completed=self._done + part, description=text)
