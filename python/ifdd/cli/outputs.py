"""Where `ifdd predict` writes: the journal, files that say the same in other forms, standard output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.paths import require_writable_file
from ifdd.cli.spare import identity, spare
from ifdd.journal import Journal, ResultsError, claim, to_line, whole_lines
from ifdd.outcomes import Begun, Outcome, VideoPrediction, WindowResult
from ifdd.results import Csv, JsonArray
from ifdd.text import counted, printable
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
            if value != "-":
                require_writable_file(option, value)
        if self.journal is not None:
            require_writable_file("the journal", self.journal)
        files = self._files()
        for number, (option, file) in enumerate(files):
            for other, same in files[:number]:
                if identity(file) == identity(same):
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
        spare(self._files(), inputs)

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


def _holds_something(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _state(target: str | None) -> tuple[int, int, int] | None:
    """Changes when another program writes a file; None where there is none."""
    if target is None or not _is_file(target) or not Path(target).exists():
        return None
    status = Path(target).stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Comparison:
    """Takes what would be written to a file, and sees whether all of the first `length` bytes that are there
    would be written again.
    """

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = max(0, length)
        self._same = True
        file.seek(0)

    def write(self, text: str) -> None:
        new = text.encode()[: self._left]
        self._same = self._same and self._file.read(len(new)) == new
        self._left -= len(new)

    def flush(self) -> None:
        """Nothing is held back."""

    @property
    def contained(self) -> bool:
        return self._same and self._left == 0


class Outputs:
    """Writes outcomes to all targets as they come; a context manager. No file changes before it is entered.

    Args:
        targets: where to.
        header: from :func:`ifdd.journal.run_header`.
        overwrite: begin anew where there are results.
        retry: take videos that failed for not done.
        quiet: print no tables and no summary.

    Attributes:
        tables: whether they are printed on stdout.

    Raises:
        ResultsError: files that are there are not those of a run that this one can go on from.
    """

    def __init__(
        self,
        targets: OutputTargets,
        header: Mapping[str, Any],
        *,
        overwrite: bool,
        retry: bool,
        quiet: bool = False,
    ) -> None:
        self.tables = targets.stdout_is_free and not quiet
        self._quiet = quiet
        self._retry = retry
        self._targets = targets
        self._header = header
        self._class_names: Sequence[str] = header["classes"]
        self._ended: dict[str, bool] = {}
        self._files = contextlib.ExitStack()
        self._writers: list[Csv | JsonArray] = []
        self._lines: TextIO | None = None
        self._array: JsonArray | None = None
        path = targets.journal
        self.journal = None if path is None else Journal(path, header, overwrite=overwrite)
        self._json_before = _state(targets.json)
        if self.journal is not None:
            try:
                self._refuse_files_of_others(overwrite)
            except BaseException:
                self.journal.close()
                raise

    @property
    def windows_read(self) -> int:
        """Windows that the network has read for what is written."""
        return 0 if self.journal is None else self.journal.windows_read

    def __enter__(self) -> Outputs:
        if self.journal is not None:
            self.journal.__enter__()
            if self.journal.remark is not None:
                print(f"ifdd: warning: {self.journal.remark}", file=sys.stderr)
            if self._retry:
                self.journal.forget_failures()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if self.journal is not None:
                self._files.callback(self.journal.close)
            if error is None:
                self._finish()
                return
            with contextlib.suppress(OSError):  # `error` is what went wrong
                self._finish()
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and self.journal is not None:
                done = f"{counted(len(self._ended), 'video')} {'is' if len(self._ended) == 1 else 'are'} done"
                print(
                    f"ifdd: {done}, in {printable(self.journal.path)}; "
                    "the same command with --resume does the rest",
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
        if len(self._ended) != 1 and not self._quiet:
            text = f"{len(self._ended) - failed} predicted, {failed} failed"
            print(text, file=sys.stdout if self.tables else sys.stderr)
        return EXIT_FAILED if failed else 0

    def _refuse_files_of_others(self, overwrite: bool) -> None:
        """Keeps a CSV or JSON file that another run is writing, or that holds more than the journal."""
        assert self.journal is not None
        for option, target, write in (
            ("--csv", self._targets.csv, self._write_csv),
            ("--json", self._targets.json, self._write_json),
        ):
            if not _is_file(target) or not _holds_something(Path(str(target))):
                continue
            with Path(str(target)).open("rb") as file:
                claim(file, str(target))
                if overwrite:
                    continue
                comparison = _Comparison(file, whole_lines(file) - len(JsonArray.END) * (option == "--json"))
                write(comparison)  # type: ignore[arg-type]
            if not comparison.contained:
                raise ResultsError(
                    f"{option}: {printable(str(target))} holds results that {printable(self.journal.path)} "
                    "does not, those of another run: name another file, or move this one away"
                )

    def _write_csv(self, file: TextIO) -> None:
        """All that the journal holds."""
        assert self.journal is not None
        rows = Csv(file, self._class_names)
        for outcome in self.journal.outcomes():
            rows.add(outcome)

    def _write_json(self, file: TextIO) -> None:
        """All that the journal holds."""
        assert self.journal is not None
        array = JsonArray(file)
        for outcome in self.journal.outcomes():
            array.add(outcome)
        array.close()

    def _open(self) -> None:
        targets = self._targets
        if targets.jsonl is not None and not _is_file(targets.jsonl):
            self._lines = self._stream(targets.jsonl)
            print(json.dumps(self._header), file=self._lines, flush=True)
        if _is_file(targets.csv):
            assert self.journal is not None
            path = str(targets.csv)
            with replacing(path) as file:
                self._write_csv(file)
            more = Path(path).open("a", encoding="utf-8", newline="")  # noqa: SIM115 (closed with the others)
            opened = self._files.enter_context(more)
            claim(opened, path)
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
            target = str(self._targets.json)
            if _state(target) != self._json_before:
                raise ResultsError(
                    f"--json: {printable(target)} was written by another program meanwhile, and is kept; the "
                    f"results are in {printable(self.journal.path)}, and the same command with --resume and "
                    "another name for --json writes them there"
                )
            with replacing(target) as file:
                self._write_json(file)

    def _stream(self, target: str) -> TextIO:
        if target == "-":
            return sys.stdout
        return self._files.enter_context(Path(target).open("w", encoding="utf-8", newline=""))
