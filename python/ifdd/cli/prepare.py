"""Cut the faces out of raw videos, for training.

VIDEOS are video files, folders of them or patterns. Faces are found, followed and cut out as by ifdd predict
--face. Each face becomes a folder of frames in DIR, and DIR/list.csv lists these folders with their labels,
ready for ifdd fit --data list --train_list DIR/list.csv. The label of a video is the name of its folder
(videos/Happy/a.mp4), or comes from --list. A video that cannot be used is reported on stderr; the others
are still prepared, and the exit code is 1. To continue an interrupted run, give the same command again.

The frames show people's faces: protect DIR as the law and those people expect. Nothing leaves this machine.
"""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.common import add_device_option, choose_device
from ifdd.cli.paths import require_file, require_folder, require_writable_folder
from ifdd.cli.signals import stoppable
from ifdd.cli.spare import spare
from ifdd.text import counted, one_line, printable

if TYPE_CHECKING:
    from ifdd.prepare import PrepareOptions

SUMMARY = "cut the faces out of raw videos, for training"
USAGE = "[VIDEOS ...] --out DIR [options]"

_UNUSABLE = "no list can name this class (a comma, a control character or bytes that are not UTF-8)"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="VIDEOS",
        help="video file, folder of numbered frames, folder of videos, or quoted pattern (*, ?, **)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the frames and the list")
    group = parser.add_argument_group("Input")
    group.add_argument("--recursive", action="store_true", help="search subfolders, too")
    group.add_argument(
        "--list",
        type=str | None,
        default=None,
        metavar="FILE",
        help="list file with videos and labels, in any form that ifdd fit reads; instead of VIDEOS",
    )
    group.add_argument(
        "--root",
        type=str | None,
        default=None,
        metavar="FOLDER",
        help="folder that the paths in the list are relative to; default: the folder of the list",
    )
    group.add_argument(
        "--classes",
        type=str | None,
        default=None,
        help="class names in label order: A,B,C, or dfew, ferv39k or mafw for those of that data set; "
        "required with --list",
    )
    group.add_argument(
        "--strict", action="store_true", help="refuse damaged videos; otherwise their readable frames count"
    )
    group = parser.add_argument_group("Output")
    group.add_argument(
        "--face",
        type=str,
        default="largest",
        metavar="WHICH",
        help="faces to cut out: largest, all, or a number (2: the two largest)",
    )
    group.add_argument(
        "--size",
        type=int | None,
        default=None,
        help="resize the frames to this side length in pixels; default: keep the size of the cut",
    )
    group.add_argument(
        "--format",
        type=Literal["png", "jpg"],
        default="png",
        help="png loses nothing, jpg is smaller",
    )
    group.add_argument("--quality", type=int, default=95, help="quality of jpg files, 1 to 100")
    group.add_argument(
        "--min_frames",
        type=int,
        default=16,
        help="skip appearances of a face that last fewer frames, unless it has no longer one",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="prepare all videos again, and delete the earlier results"
    )
    group = parser.add_argument_group("Running")
    add_device_option(parser)
    group.add_argument(
        "--jobs",
        type=int | None,
        default=None,
        help="videos processed in parallel; default: one per processor, at most 4",
    )


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rich.console import Console
    from rich.progress import Progress

    from ifdd.faces.detector import load_detector
    from ifdd.journal import ResultsError
    from ifdd.prepare import Preparation, training_command

    settings = _settings(options)
    jobs = min(4, os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    classes = _check_inputs(options)
    require_writable_folder("--out", options.out)
    _outside(options)
    file = Path(options.out) / f"{'list' if options.list is None else Path(options.list).stem}.csv"
    if options.list is not None:
        spare([("--out", file)], [("the list", options.list)])
    detector = load_detector(choose_device(options.device))
    videos = _videos(options, classes)
    sound = [(path, label) for path, label, error in videos if error is None]
    if options.overwrite:
        _spare_videos(options.out, [path for path, _ in sound])
    failed = frames = 0
    rows: list[tuple[str, str]] = []

    def fail(error: Exception) -> None:
        nonlocal failed
        failed += 1
        print(f"ifdd: error: {one_line(error)}", file=sys.stderr)

    for _, _, error in videos:
        if error is not None:
            fail(error)
    bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    try:
        preparation = Preparation(options.out, settings, overwrite=options.overwrite)
    except ResultsError as error:
        raise UsageError(one_line(error)) from None
    with preparation, bar:
        task = bar.add_task("videos", total=len(sound))
        # Closed at once where a signal ends the loop: the threads stop before the record is closed.
        with (
            stoppable() as check,
            contextlib.closing(preparation.run([path for path, _ in sound], detector, jobs)) as results,
        ):
            for (_, label), prepared in zip(sound, results, strict=True):
                check()
                bar.advance(task)
                if prepared.error is not None:
                    fail(prepared.error)
                    continue
                if prepared.damage is not None:
                    damage = f"{printable(prepared.path)}: {one_line(prepared.damage)}"
                    print(f"ifdd: warning: {damage}", file=sys.stderr)
                frames += prepared.frames
                rows += [(folder, label) for folder in prepared.folders]
        _write_list(file, rows)
    counts = Counter(label for _, label in rows)
    written = f"{counted(len(rows), 'face')}, {counted(frames, 'frame')}"
    print(f"{counted(len(videos) - failed, 'video')} prepared, {failed} failed; {written}")
    of_class = ", ".join(f"{printable(name)} {count}" for name, count in sorted(counts.items()))
    print(f"list: {printable(file)}" + (f" ({of_class})" if rows else ""))
    if rows:
        print(f"train: {printable(training_command(file, options.classes or ','.join(sorted(counts))))}")
    return EXIT_FAILED if failed else 0


def _settings(options: Namespace) -> PrepareOptions:
    from ifdd.faces.tracks import parse_face
    from ifdd.prepare import PrepareOptions

    try:
        face = parse_face(options.face)
        if face is None:
            raise ValueError(f"face must be largest, all or a number from 1, got {options.face!r}")
        quality = None if options.format == "png" else options.quality
        return PrepareOptions(face, options.size, quality, options.min_frames, options.strict)
    except ValueError as error:
        raise UsageError(f"--{one_line(error)}") from None


def _check_inputs(options: Namespace) -> tuple[str, ...]:
    """Refuses what cannot be read, before anything is; returns the names of the classes, with a list."""
    from ifdd.data.labels import class_list

    if (options.list is None) == (not options.inputs):
        raise UsageError("name either VIDEOS, whose folders are their labels, or a list of them with --list")
    if options.list is None:
        return ()
    require_file("--list", options.list)
    if options.root is not None:
        require_folder("--root", options.root)
    if options.classes is None:
        raise UsageError("--list needs --classes, the names of the classes in label order")
    try:
        names = class_list(options.classes)
    except ValueError as error:
        raise UsageError(f"--classes {one_line(error)}") from None
    for name in names:
        if not _usable(name):
            raise UsageError(f"--classes: {printable(name)}: {_UNUSABLE}")
    return names


def _usable(name: str) -> bool:
    """Whether a list, and `--classes` in the command that is shown, can hold the name of a class."""
    return "," not in name and printable(name) == name


def _videos(options: Namespace, names: tuple[str, ...]) -> list[tuple[str, str, Exception | None]]:
    """Path, name of the class and error of each video."""
    from ifdd.data.errors import VideoError
    from ifdd.data.foreign_lists import read_listing
    from ifdd.data.locate import Locator
    from ifdd.inputs import find_videos

    if options.list is None:
        videos: list[tuple[str, str, Exception | None]] = []
        for path, error in find_videos(options.inputs, options.recursive):
            label = Path(path).absolute().parent.name
            if error is None and not _usable(label):
                error = VideoError(f"{printable(path)}: its folder, {printable(label)}: {_UNUSABLE}")
            videos.append((path, label, error))
        return videos
    listed = Path(options.list)
    base = listed.parent if options.root is None else Path(options.root)
    locator = Locator(base, listed.parent, "", ())
    return [
        (str(locator.find(entry)), names[entry.label], None) for entry in read_listing(listed, names).entries
    ]


def _outside(options: Namespace) -> None:
    """Refuses to write the frames where the next run would take them for videos."""
    out = Path(os.path.realpath(options.out))
    for name in options.inputs:
        place = Path(os.path.realpath(name))
        if place == out or (options.recursive and place.is_dir() and place in out.parents):
            raise UsageError(f"--out: {printable(options.out)} is in {printable(name)}, which is read")


def _spare_videos(out: str, videos: list[str]) -> None:
    """Refuses to overwrite a folder that holds what is read: the folders in it would be removed first."""
    folder = Path(os.path.realpath(out))
    for path in videos:
        if folder in Path(os.path.realpath(path)).parents:
            raise UsageError(f"--overwrite: {printable(out)} holds {printable(path)}, which is read")


def _write_list(file: Path, rows: list[tuple[str, str]]) -> None:
    from ifdd.whole import replacing

    with replacing(file) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label"])
        writer.writerows(rows)
