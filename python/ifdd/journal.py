"""The journal of a run of predictions: written as they come, and an interrupted run can go on from it.

It is JSON Lines: a line for the run, then for every video a line per window and one at its end. What is whole
in it is done; a last line that a killed run left half-written is cut off. JSON and CSV (:mod:`ifdd.results`)
say the same in other forms and can be written from it at any time.

======== =====================================================================================================
kind     keys
======== =====================================================================================================
run      format, version, checkpoint, sha256, classes, settings
window   path, window (from 0), start_seconds, stop_seconds, face and box (where faces were followed; x, y,
         width, height), label, probabilities, logits
video    path, windows, then those of :meth:`ifdd.outcomes.VideoPrediction.summary`
failed   path, windows (how many the network had read), error
======== =====================================================================================================

All is ASCII. ``path`` is text; where a path is none (bytes that are not UTF-8), ``path_bytes`` holds it in
hexadecimal and ``path`` shows these bytes as ``\\xNN``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

from ifdd.data.face import CropBox
from ifdd.outcomes import (
    Outcome,
    VideoFailure,
    VideoPrediction,
    WindowPrediction,
    WindowResult,
    best,
    path_of_dict,
    path_to_dict,
)
from ifdd.streaming import Footage
from ifdd.text import one_line, printable
from ifdd.whole import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


class ResultsError(ValueError):
    """A file of results that cannot be used; the message is one line."""


def run_header(
    checkpoint: str | os.PathLike[str], class_names: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The header of a journal; runs with the same header give the same results.

    Raises:
        OSError: the checkpoint cannot be read.
    """
    import ifdd_kernels

    digest = hashlib.sha256()
    with Path(checkpoint).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "kind": "run",
        "format": FORMAT,
        "version": ifdd_kernels.__version__,
        "checkpoint": Path(checkpoint).name,
        "sha256": digest.hexdigest(),
        "classes": list(class_names),
        "settings": dict(settings),
    }


def to_line(outcome: Outcome, class_names: Sequence[str]) -> dict[str, Any]:
    """The journal's line for one outcome."""
    if isinstance(outcome, WindowResult):
        window = outcome.prediction
        return {
            "kind": "window",
            **path_to_dict(outcome.path),
            "window": outcome.number,
            "start_seconds": window.start_seconds,
            "stop_seconds": window.stop_seconds,
            **window.place(),
            "label": best(class_names, window.probabilities),
            "probabilities": dict(zip(class_names, window.probabilities, strict=True)),
            "logits": list(window.logits),
        }
    if isinstance(outcome, VideoPrediction):
        summary = {"windows": len(outcome.windows), **outcome.summary()}
        return {"kind": "video", **path_to_dict(outcome.path), **summary}
    failure = {"windows": outcome.windows, "error": one_line(outcome.error)}
    return {"kind": "failed", **path_to_dict(outcome.path), **failure}


class Journal:
    """Appends outcomes to a file; a context manager.

    Every line is handed to the operating system at once: a killed run keeps what it had. The file is as it
    was until the context is entered: a run that is refused before has changed nothing.

    Args:
        path: the file.
        header: from :func:`run_header`.
        overwrite: begin anew even if the file holds results; otherwise a file that is there is gone on from.

    Attributes:
        done: path -> whether it was predicted, of the videos that are finished.
        begun: path and windows of the video in the middle of which the file ends.
        windows_read: windows that the network has read for what is in the file.
        remark: what differs from the run that began the file, if that changes rounding only.

    Raises:
        ResultsError: the file is not a journal, is damaged, is of another checkpoint or other settings, or
            another run is writing to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.done: dict[str, bool] = {}
        self.begun: tuple[str, tuple[WindowPrediction, ...]] | None = None
        self.windows_read = 0
        self.remark: str | None = None
        self._header = header
        self._class_names = tuple(header["classes"])
        self._whole = 0  # where the last finished video ends
        self._made = not self.path.exists()
        self._file = self._open()
        try:
            # Where the lines end that are gone on from; once the context is entered, the end of the file.
            self._end: int | None = 0 if overwrite else whole_lines(self._file)
            if self._end:
                self.remark = _compare(self.path, header)
                self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        self._file.truncate(self._end)
        if self._end == 0:
            self._write(self._header)
            self._whole = self._file.tell()
        self._end = None
        return self

    def close(self) -> None:
        """Closes the file, and removes it if this journal made it and has written nothing."""
        if self._made and not self._file.closed and os.fstat(self._file.fileno()).st_size == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def outcomes(self) -> Iterator[Outcome]:
        """The outcomes in the file (errors with their text only), or before the context is entered those that
        are gone on from.

        Raises:
            ResultsError: the file is damaged.
        """
        for outcome, _ in _outcomes(self.path, self._end):
            yield outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, outcome: Outcome) -> None:
        """Writes one outcome.

        Raises:
            OSError: it could not be written, for example because the disk is full.
        """
        self._write(to_line(outcome, self._class_names))

    def drop_begun(self) -> None:
        """Takes the windows of the video in the middle of which the file ends out of it."""
        if self.begun is not None:
            self.windows_read -= len(self.begun[1])
            self.begun = None
            self._file.truncate(self._whole)

    def forget_failures(self) -> None:
        """Takes the videos that failed out of the file, so that they can be tried again; after entering."""
        failed = {path for path, predicted in self.done.items() if not predicted}
        if not failed:
            return
        with replacing(self.path) as file:
            for line, _ in _lines(self.path):
                if line["kind"] == "run" or path_of_dict(line) not in failed:
                    file.write(json.dumps(line) + "\n")
        self._file.close()
        self._file = self._open()
        self._load()

    def _open(self) -> BinaryIO:
        file = self.path.open("a+b")
        try:
            claim(file, self.path)
        except ResultsError:
            file.close()
            raise
        return file

    def _load(self) -> None:
        windows: list[WindowPrediction] = []
        name = ""
        self.done, self.windows_read = {}, 0
        self._whole = _header(self.path)[1]
        for outcome, end in _outcomes(self.path, self._end):
            if isinstance(outcome, WindowResult):
                windows.append(outcome.prediction)
                name = outcome.path
                continue
            self.done[outcome.path] = isinstance(outcome, VideoPrediction)
            self.windows_read += (
                outcome.windows if isinstance(outcome, VideoFailure) else len(outcome.windows)
            )
            windows = []
            self._whole = end
        self.windows_read += len(windows)
        self.begun = (name, tuple(windows)) if windows else None

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line).encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def claim(file: IO[Any], path: str | os.PathLike[str]) -> None:
    """Keeps other runs from writing to an open file until it is closed.

    Raises:
        ResultsError: another run is writing to it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(f"{printable(path)}: another run is writing to this file") from None
    except OSError:
        pass  # some network file systems have no locks


def whole_lines(file: BinaryIO) -> int:
    """Where the last whole line of a file ends; a killed run may have left half of one behind it."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _lines(path: Path, limit: int | None = None) -> Iterator[tuple[dict[str, Any], int]]:
    """The lines of a journal, and where each ends; those that end at `limit` at the latest."""
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            end += len(raw)
            if limit is not None and end > limit:
                return
            try:
                line = json.loads(raw)
                if not isinstance(line, dict) or (line["kind"] == "run") != (number == 1):
                    raise ValueError
            except (ValueError, KeyError):
                raise ResultsError(
                    f"{printable(path)}: line {number} is not one of a file of `ifdd predict`"
                ) from None
            yield line, end


def _outcomes(path: Path, limit: int | None = None) -> Iterator[tuple[Outcome, int]]:
    class_names: tuple[str, ...] = ()
    windows: list[WindowPrediction] = []
    for number, (line, end) in enumerate(_lines(path, limit), 1):
        try:
            kind = line["kind"]
            if kind == "run":
                class_names = tuple(line["classes"])
                continue
            name = path_of_dict(line)
            if kind == "window":
                if line["window"] != len(windows):
                    raise ValueError
                box = None if "box" not in line else CropBox(*line["box"])
                window = WindowPrediction.of_logits(
                    line["start_seconds"], line["stop_seconds"], line["logits"], line.get("face"), box
                )
                windows.append(window)
                yield WindowResult(name, line["window"], window), end
                continue
            if kind == "video":
                yield VideoPrediction.of_windows(name, class_names, windows, _footage(line)), end
            else:
                yield VideoFailure(name, ResultsError(line["error"]), line["windows"]), end
            windows = []
        except (ValueError, KeyError, TypeError, IndexError):
            raise ResultsError(
                f"{printable(path)}: line {number} does not follow from those before it; the file is damaged"
            ) from None


def _footage(line: Mapping[str, Any]) -> Footage:
    names = (
        *("windows", "frames_read", "frames_announced", "frames_used", "seconds", "stretched", "damage"),
    )
    return Footage(**{name: line[name] for name in names}, remarks=tuple(line["remarks"]))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    return next(_lines(path))


def _compare(path: Path, header: Mapping[str, Any]) -> str | None:
    """Refuses to go on from a run whose results would differ; returns what makes them differ in rounding."""
    old = _header(path)[0]
    try:
        if old["format"] != header["format"]:
            raise ResultsError(
                f"{printable(path)}: is of format {old['format']}, this program writes {header['format']}"
            )
        if (old["sha256"], old["classes"]) != (header["sha256"], header["classes"]):
            raise ResultsError(
                f"{printable(path)}: was written with another checkpoint, {printable(old['checkpoint'])} "
                f"(SHA-256 {old['sha256'][:12]}..., now {header['sha256'][:12]}...)"
            )
        before, now = old["settings"], header["settings"]
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    except (KeyError, TypeError):
        raise ResultsError(f"{printable(path)}: line 1 is not one of a file of `ifdd predict`") from None
    words = {name: f"--{name} was {_word(before.get(name))}, now {_word(now.get(name))}" for name in changed}
    remark = words.pop("batch", None)
    if words:
        raise ResultsError(f"{printable(path)}: was written with other settings: {'; '.join(words.values())}")
    if remark is None:
        return None
    return f"{printable(path)}: {remark}: the rest may differ from one unbroken run in the last digits"


def _word(value: object) -> str:
    return "not set" if value is None else str(value)
