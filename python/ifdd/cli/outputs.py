"""Where `ifdd predict` writes: the journal, files that say the same in other forms, standard output."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.data.folder import IMAGE_SUFFIXES
from ifdd.journal import Journal, read_outcomes, to_line
from ifdd.outcomes import Begun, Outcome, VideoPrediction, WindowResult
from ifdd.results import Csv, JsonArray
from ifdd.text import printable
from ifdd.whole import replacing


@dataclass(frozen=True)
class OutputTargets:
    """The values of `--jsonl`, `--csv` and `--json`."""

    jsonl: str | None
    csv: str | None
    json: str | None

    @property
    def journal(self) -> Path | None:
        """The file that a run goes on from: that of `--jsonl`, or one beside the first other file."""
        if _is_file(self.jsonl):
            return Path(str(self.jsonl))
        for target in (self.json, self.csv):
            if _is_file(target):
                return Path(f"{target}.journal")
        return None

    @property
    def stdout_is_free(self) -> bool:
        """Whether tables may go there."""
        return "-" not in (self.jsonl, self.csv, self.json)

    def check(self, resume: bool, overwrite: bool, retry: bool) -> None:
        """Refuses, before any work is done, what would lose results.

        Raises:
            UsageError: see the messages.
        """
        named = [(f"--{option}", value) for option, value in vars(self).items() if value is not None]
        piped = [option for option, value in named if value == "-"]
        if len(piped) > 1:
            raise UsageError(f"{piped[-1]} - and {piped[0]} - cannot both write to stdout")
        for option, value in named:
            if not value:
                raise UsageError(f"{option} is empty, expected the name of a file, or - for stdout")
            _reachable(option, Path(value))
        if self.journal is not None:
            _reachable("the journal", self.journal)
        files = self._files()
        for number, (option, file) in enumerate(files):
            if file.is_dir():
                raise UsageError(f"{option}: {printable(file)} is a folder")
            for other, same in files[:number]:
                if _identity(file) == _identity(same):
                    raise UsageError(f"{other} and {option} name the same file, {printable(file)}")
        if resume and overwrite:
            raise UsageError("--resume keeps what --overwrite would replace: name one of them")
        if retry and not resume:
            raise UsageError("--retry_failed goes with --resume")
        if self.journal is None:
            if resume:
                raise UsageError("--resume needs the file to go on from: --jsonl, --csv or --json")
            return
        if overwrite or (resume and _holds_something(self.journal)):
            return
        for option, file in files:
            if not _holds_something(file):
                continue
            if resume:
                raise UsageError(
                    f"{option}: {printable(file)} is there, but not {printable(self.journal)} that --resume "
                    "goes on from; --overwrite begins anew"
                )
            ways = "--overwrite replaces it"
            if _holds_something(self.journal):
                ways = f"--resume goes on with that run, {ways}"
            raise UsageError(f"{option}: {printable(file)} is there already; {ways}")

    def spare(self, inputs: Iterable[tuple[str, str]]) -> None:
        """Refuses to write over what the run reads, whatever name or link leads there.

        Args:
            inputs: what each is ("a video") and its path; of a folder, its frames are meant.

        Raises:
            UsageError: an output is an input.
        """
        written = {_identity(file): (option, file) for option, file in self._files() if file.exists()}
        frames = {
            _identity(file.parent): (option, file)
            for option, file in written.values()
            if file.suffix.lower() in IMAGE_SUFFIXES
        }
        if not written:
            return
        for what, path in inputs:
            found = (frames if os.path.isdir(path) else written).get(_identity(Path(path)))  # noqa: PTH112
            if found is not None:
                option, file = found
                raise UsageError(f"{option}: {printable(file)} is {what} that this run reads")

    def _files(self) -> list[tuple[str, Path]]:
        """All that is written to the disk, and what asked for it."""
        named = [(f"--{option}", value) for option, value in vars(self).items()]
        files = [(option, Path(value)) for option, value in named if _is_file(value)]
        if self.journal is not None and not _is_file(self.jsonl):
            files.append(("the journal", self.journal))
        return files


def _is_file(target: str | None) -> bool:
    """Whether a target is a file or will be one: not stdout, a pipe or a device."""
    if target is None or target == "-":
        return False
    path = Path(target)
    return path.is_file() or path.is_dir() or not path.exists()


def _reachable(option: str, file: Path) -> None:
    """Refuses a name that no file can have, and one that may not be looked at."""
    try:
        file.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{option}: {printable(file)}: {error.strerror}") from None


def _identity(path: Path) -> tuple[int, int] | str:
    """The same for all names of a file."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


class Outputs:
    """Writes outcomes to all targets as they come; a context manager.

    Attributes:
        tables: whether stdout is free for them.
    """

    def __init__(
        self, targets: OutputTargets, header: Mapping[str, Any], *, overwrite: bool, retry: bool
    ) -> None:
        self.tables = targets.stdout_is_free
        self._targets = targets
        self._header = header
        self._class_names: Sequence[str] = header["classes"]
        self._ended: dict[str, bool] = {}
        self._files = contextlib.ExitStack()
        self._writers: list[Csv | JsonArray] = []
        self._lines: TextIO | None = None
        self._array: JsonArray | None = None
        path = targets.journal
        self.journal = None if path is None else Journal(path, header, overwrite=overwrite, retry=retry)

    @property
    def windows_read(self) -> int:
        """Windows that the network has read for what is written."""
        return 0 if self.journal is None else self.journal.windows_read

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if self.journal is not None:
                self._files.enter_context(self.journal)
            if error is None:
                self._finish()
                return
            with contextlib.suppress(OSError):  # `error` is what went wrong
                self._finish()
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and self.journal is not None:
                print(
                    f"ifdd: {len(self._ended)} videos are done; the same command with --resume does the rest",
                    file=sys.stderr,
                )

    def begin(self, videos: Sequence[tuple[str, ValueError | None]]) -> list[Begun]:
        """Writes what an earlier run has done to the other files; returns the videos that remain."""
        done: Mapping[str, bool] = {}
        windows: Mapping[str, Any] = {}
        if self.journal is not None:
            done = self.journal.done
            left = next((path for path, _ in videos if path not in done), None)
            if self.journal.begun is not None:
                if self.journal.begun[0] == left:
                    windows = dict([self.journal.begun])
                else:
                    self.journal.drop_begun()
        self._ended.update((path, done[path]) for path, _ in videos if path in done)
        self._open()
        return [Begun(path, windows.get(path, ()), error) for path, error in videos if path not in done]

    def add(self, outcome: Outcome) -> None:
        """Writes one outcome everywhere."""
        if self.journal is not None:
            self.journal.add(outcome)
        if self._lines is not None:
            print(json.dumps(to_line(outcome, self._class_names)), file=self._lines, flush=True)
        for writer in self._writers:
            writer.add(outcome)
        if not isinstance(outcome, WindowResult):
            self._ended[outcome.path] = isinstance(outcome, VideoPrediction)

    def summarise(self) -> int:
        """Says how many videos were predicted; returns the exit code."""
        failed = sum(not predicted for predicted in self._ended.values())
        if len(self._ended) != 1:
            text = f"{len(self._ended) - failed} predicted, {failed} failed"
            print(text, file=sys.stdout if self.tables else sys.stderr)
        return EXIT_FAILED if failed else 0

    def _open(self) -> None:
        targets = self._targets
        if targets.jsonl is not None and not _is_file(targets.jsonl):
            self._lines = self._stream(targets.jsonl)
            print(json.dumps(self._header), file=self._lines, flush=True)
        if _is_file(targets.csv):
            assert self.journal is not None
            path = str(targets.csv)
            with replacing(path) as file:
                rows = Csv(file, self._class_names)
                for outcome in read_outcomes(self.journal.path):
                    rows.add(outcome)
            more = Path(path).open("a", encoding="utf-8", newline="")  # noqa: SIM115 (closed with the others)
            opened = self._files.enter_context(more)
            self._writers.append(Csv(opened, self._class_names, heading=False))
        elif targets.csv is not None:
            self._writers.append(Csv(self._stream(targets.csv), self._class_names))
        if targets.json is not None and not _is_file(targets.json):
            self._array = JsonArray(self._stream(targets.json))
            self._writers.append(self._array)

    def _finish(self) -> None:
        """Ends the array on stdout, or writes the JSON file from the journal."""
        if self._array is not None:
            self._array.close()
        if _is_file(self._targets.json):
            assert self.journal is not None
            with replacing(str(self._targets.json)) as file:
                array = JsonArray(file)
                for outcome in read_outcomes(self.journal.path):
                    array.add(outcome)
                array.close()

    def _stream(self, target: str) -> TextIO:
        if target == "-":
            return sys.stdout
        return self._files.enter_context(Path(target).open("w", encoding="utf-8", newline=""))
