"""Check a data set before training: find videos that are missing, damaged or unusual, and count each class.

Every video is decoded once, from beginning to end. These are faults: a video that is missing, unreadable or
damaged, or that is listed twice (in one list, or for training and for testing); a list that cannot be read; a
class without training videos. Anything else that is unusual is only noted. The reports grow while videos are
read. Exit code 0: no faults, 1: faults, 2: a wrong call.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.common import add_test_options, data_config, network_options, require_data, wide_console
from ifdd.cli.evaluate import TRAINING_ONLY
from ifdd.cli.paths import require_writable_file
from ifdd.cli.spare import spare
from ifdd.text import cell, counted, one_line, printable

if TYPE_CHECKING:
    from ifdd.config import IFDDConfig
    from ifdd.data.inspection import Finding, Listed
    from ifdd.training.config import DataConfig

SUMMARY = "find faults in a data set before training"
USAGE = "--data DATA [options]"
UNUSED = TRAINING_ONLY - {"soft_labels"} | {
    *(
        "device",
        "devices",
        "num_nodes",
        "strategy",
        "short",
        "sampling",
        "crop",
        "eval_batch_size",
        "one_frame",
        "test_size",
    )
}
"""Options that change nothing in what is looked at; the votes of soft labels are."""
SHOWN = 20
"""Most faults that are printed; the reports hold all."""

_COLUMNS = ("split", "number", "path", "label", "class", "frames", "width", "height", "faults", "notes")


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--csv",
        type=str | None,
        default=None,
        metavar="FILE",
        help="CSV file to write, one line per video",
    )
    parser.add_argument(
        "--json",
        type=str | None,
        default=None,
        metavar="FILE",
        help="JSON Lines file to write: one object per video, and the counts at the end",
    )
    add_test_options(parser, UNUSED)
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    data = data_config(options)
    if data.name == "list" and not (data.train_list or data.test_list):
        raise UsageError("--data list needs --train_list, --test_list or both")
    require_data(data)
    for name in ("csv", "json"):
        if options[name] is not None:
            require_writable_file(f"--{name}", options[name])

    from ifdd.config import IFDDConfig
    from ifdd.data.inspection import find
    from ifdd.training.data import sampling_policy

    network = IFDDConfig.from_dict(network_options(options))
    report = Report(data)
    videos = list(_listed(data, network, report))
    lists = [("a list", path) for path in (data.train_list, data.test_list) if path is not None]
    spare(
        [(f"--{name}", Path(options[name])) for name in ("csv", "json") if options[name] is not None],
        [*lists, *(("a video", video.path) for video in videos)],
    )
    policy = sampling_policy(data)
    window = network.clip_frames * policy.stride
    report.short = f"fewer frames than the {window} of a window, stretched to it (--short {policy.short})"
    with ExitStack() as stack:
        writers = [
            writer(stack.enter_context(Path(path).open("w", newline="", encoding="utf-8")))
            for path, writer in ((options.csv, _csv_writer), (options.json, _json_writer))
            if path is not None
        ]
        readings = stack.enter_context(
            _Readings(videos, data.workers, options.progress and not options.quiet)
        )
        for finding in find(videos, readings, window):
            report.add(finding)
            for write in writers:
                write(report.row(finding), False)
        for write in writers:
            write(report.summary(), True)
    report.show()
    return EXIT_FAILED if report.faults() else 0


class Report:
    """Counts of the findings.

    Args:
        data: the data set that is looked at.
    """

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.class_names: tuple[str, ...] = ()
        self.short = ""
        self.first_label = 0
        self.list_faults: list[str] = []
        self.list_notes: list[str] = []
        self.findings: list[Finding] = []
        self.counts: dict[str, Counter[tuple[int, str]]] = {}

    def add(self, finding: Finding) -> None:
        """Counts a video."""
        counts = self.counts.setdefault(finding.video.split, Counter())
        kinds = ["clips", *finding.faults]
        kinds += ["short"] if any(note.startswith("short") for note in finding.notes) else []
        for kind in kinds:
            counts[finding.video.label, kind] += 1
        if finding.faults:
            self.findings.append(finding)

    def unusable(self, split: str) -> int:
        """Videos of a split that cannot be read."""
        return sum(finding.video.split == split and not finding.usable for finding in self.findings)

    def empty_classes(self) -> list[str]:
        """Classes without a training video that can be read, if there is a training list."""
        if "train" not in self.counts:
            return []
        lost = Counter(f.video.label for f in self.findings if f.video.split == "train" and not f.usable)
        left = self.counts["train"]
        return [name for label, name in enumerate(self.class_names) if left[label, "clips"] <= lost[label]]

    def faults(self) -> int:
        """Number of videos, lists and classes with a fault."""
        return len(self.findings) + len(self.list_faults) + len(self.empty_classes())

    def row(self, finding: Finding) -> dict[str, Any]:
        """A line of the reports."""
        video, reading = finding.video, finding.reading
        width, height = reading.size or (None, None)
        values = (
            video.split,
            video.place,
            os.fspath(video.path),
            self.first_label + video.label,
            self.class_names[video.label],
            reading.frames,
            width,
            height,
            finding.faults,
            list(finding.notes),
        )
        return dict(zip(_COLUMNS, values, strict=True))

    def summary(self) -> dict[str, Any]:
        """The last line of the JSON report."""
        return {
            "data": self.data.name,
            "classes": list(self.class_names),
            "counts": {
                split: {
                    name: {kind: n for (at, kind), n in counts.items() if at == label}
                    for label, name in enumerate(self.class_names)
                }
                for split, counts in self.counts.items()
            },
            "lists": {"faults": self.list_faults, "notes": self.list_notes},
            "classes_without_training_videos": self.empty_classes(),
            "skipped_in_training": self.unusable("train"),
            "faults": self.faults(),
        }

    def show(self) -> None:
        """Prints tables, faults and what follows from them."""
        from rich.table import Table

        from ifdd.data.inspection import FAULTS

        console = wide_console()
        for split, counts in self.counts.items():
            kinds = ["clips", *(k for k in (*FAULTS, "short") if any(kind == k for _, kind in counts))]
            table = Table(title=cell(f"{self.data.name}: {split}"), title_justify="left")
            table.add_column("label", justify="right")
            table.add_column("class")
            for kind in kinds:
                table.add_column(kind, justify="right")
            for label, name in enumerate(self.class_names):
                table.add_row(
                    str(self.first_label + label), cell(name), *(str(counts[label, kind]) for kind in kinds)
                )
            table.add_section()
            totals = [sum(n for (_, at), n in counts.items() if at == kind) for kind in kinds]
            table.add_row("", "all", *map(str, totals))
            console.print(table)
        for line in self._lines():
            print(line)

    def _lines(self) -> Iterator[str]:
        if any(kind == "short" for counts in self.counts.values() for _, kind in counts):
            yield f"note: short: {self.short}"
        for note in self.list_notes:
            yield f"note: {one_line(note)}"
        for fault in self.list_faults:
            yield f"fault: {one_line(fault)}"
        for name in self.empty_classes():
            yield f"fault: class {printable(name)} has no training video that can be read"
        for finding in self.findings[:SHOWN]:
            path = printable(finding.video.path)
            for fault, reason in finding.faults.items():
                # Errors of videos begin with the path.
                text = one_line(reason).removeprefix(f"{path}: ")
                yield f"fault: {finding.video.split} {finding.video.place}: {path}: {fault}: {text}"
        if len(self.findings) > SHOWN:
            more = counted(len(self.findings) - SHOWN, "more video")
            yield f"... and {more} with faults; --csv FILE lists all"
        if skipped := self.unusable("train"):
            lost = counted(skipped, "training video")
            yield f"--on_error skip would leave out {lost}; otherwise training stops there"
        if stopping := self.unusable("test"):
            yield f"`ifdd test` would stop: {counted(stopping, 'test video')} cannot be read"
        clips = sum(
            n for counts in self.counts.values() for (_, kind), n in counts.items() if kind == "clips"
        )
        yield f"{counted(clips, 'video')}, {counted(self.faults(), 'fault') if self.faults() else 'no fault'}"


def _listed(data: DataConfig, network: IFDDConfig, report: Report) -> Iterator[Listed]:
    """The videos of both lists; faults and notes of the lists go to the report."""
    import warnings

    from ifdd.data.datasets import FolderDataset, VideoDataset
    from ifdd.data.errors import DatasetError, DatasetWarning
    from ifdd.data.inspection import Listed
    from ifdd.training.data import make_dataset

    given = {"train": data.train_list, "test": data.test_list}
    for split in ("train", "test"):
        if data.name == "list" and given[split] is None:
            continue
        faults: list[str] = []
        whole = replace(data, validation=0.0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DatasetWarning)  # remarks are printed with the rest
                clips = make_dataset(whole, split, network, 0, must_exist=False, faults=faults)
        except DatasetError as error:
            # Both parts may be read from the same folder.
            known = report.list_faults
            report.list_faults = known + [each for each in (*faults, str(error)) if each not in known]
            continue
        report.list_faults += faults
        report.first_label = max(report.first_label, getattr(clips, "first_label", 0))
        if split == "test" and isinstance(clips, FolderDataset) and not clips.divided:
            continue
        report.class_names = clips.class_names
        if not isinstance(clips, VideoDataset):
            report.counts[split] = Counter(
                (index % len(clips.class_names), "clips") for index in range(len(clips))
            )
            report.list_notes.append(f"{split}: drawn while training, there are no files to read")
            continue
        report.list_notes += [note for note in getattr(clips, "remarks", ()) if note not in report.list_notes]
        if split == "test" and (missing := getattr(clips, "missing_classes", ())):
            names = ", ".join(map(printable, missing))
            counting = len(clips.class_names) - len(missing)
            report.list_notes.append(
                f"no test video of {names}: UAR would be the mean of {counting} of {len(clips.class_names)} "
                "classes"
            )
        yield from (
            Listed(split, number + 1, video.path, video.label)
            for number, video in zip(clips.numbers, clips.videos, strict=True)
        )


class _Readings(dict[Any, Any]):
    """Readings by path, read in other processes while they are asked for in order, with a progress bar."""

    def __init__(self, videos: Sequence[Listed], workers: int, progress: bool) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._paths = list(dict.fromkeys(video.path for video in videos))
        self._workers = min(
            workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers
        )
        console = Console(stderr=True)
        columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not (progress and console.is_terminal))

    def __enter__(self) -> _Readings:
        from ifdd.data.inspection import read_all

        self._bar.start()
        self._task = self._bar.add_task("", total=len(self._paths))
        self._next = iter(self._paths)
        self._source = read_all(self._paths, self._workers)
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()  # type: ignore[attr-defined]
        self._bar.stop()

    def __missing__(self, path: Path) -> Any:
        for reading in self._source:
            self[next(self._next)] = reading
            self._bar.advance(self._task)
            if path in self:
                return self[path]
        raise KeyError(path)


Write = Callable[[dict[str, Any], bool], None]
"""Writes the row of a video, or the summary (True), and flushes it."""


def _csv_writer(file: TextIO) -> Write:
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(_COLUMNS)

    def write(row: dict[str, Any], summary: bool) -> None:
        if not summary:
            faults = "; ".join(f"{name}: {reason}" for name, reason in row["faults"].items())
            values = {
                **row,
                "path": printable(row["path"]),
                "faults": faults,
                "notes": "; ".join(row["notes"]),
            }
            lines.writerow([_encodable(values[name]) for name in _COLUMNS])
        file.flush()

    return write


def _json_writer(file: TextIO) -> Write:
    def write(row: dict[str, Any], summary: bool) -> None:
        # ASCII: names that are not UTF-8 keep their bytes as escapes.
        file.write(json.dumps({"summary": row} if summary else row) + "\n")
        file.flush()

    return write


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
