"""Recognise the expressions of videos.

An INPUT is a video file, a folder of numbered frames, a folder of videos, or a pattern such as
'clips/**/*.mp4'. The network reads a video in consecutive windows; the last one ends at the last frame and
may overlap the one before. The probabilities of a video are the softmax of the mean of its windows' logits. A
video shorter than a window is stretched as in the training of the checkpoint. With --face, each face is
followed through the video and has windows and probabilities of its own. A video that cannot be read is
reported on stderr; the others are still read, and the exit code is 1.

Results are written window by window. --resume continues a run that was interrupted or killed; the files are
then the same as those of an uninterrupted run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import (
    add_device_option,
    choose_device,
    wide_console,
)
from ifdd.cli.paths import require_file
from ifdd.cli.signals import stoppable
from ifdd.text import cell, counted, one_line, printable
from ifdd.training.config import Precision

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from ifdd.cli.outputs import Outputs
    from ifdd.cli.progress import Progress
    from ifdd.faces.tracks import FaceChoice
    from ifdd.outcomes import VideoPrediction
    from ifdd.prediction import Predictor
    from ifdd.streaming import Reading

SUMMARY = "recognise the expressions of videos"
USAGE = "INPUT [INPUT ...] --checkpoint CHECKPOINT [options]"

#: A table shows that many windows of a video, half of them from its beginning and half from its end.
TABLE_WINDOWS = 40

#: Of more videos than that, each has one line in place of a table, between which no warning is lost.
TABLE_VIDEOS = 10


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="video file, folder of numbered frames, folder of videos, or quoted pattern (*, ?, **)",
    )
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    group = parser.add_argument_group("Input")
    group.add_argument(
        "--list",
        type=str | None,
        default=None,
        metavar="FILE",
        help="file with one input per line, - for stdin",
    )
    group.add_argument("--recursive", action="store_true", help="search subfolders, too")
    add_crop_option(parser)
    group.add_argument(
        "--windows",
        type=Literal["all", "centre"],
        default="all",
        help="read all windows of a video, or only the centre one",
    )
    group.add_argument(
        "--tail",
        type=Literal["overlap", "drop"],
        default="overlap",
        help="frames left over at the end of a video: overlap adds a window that ends at the last frame, "
        "drop ignores them, as published",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse damaged videos; otherwise their readable frames count, and the result says so",
    )
    group = parser.add_argument_group("Output")
    group.add_argument(
        "--jsonl",
        type=str | None,
        default=None,
        metavar="FILE",
        help="JSON Lines file to write, window by window; - for stdout",
    )
    group.add_argument(
        "--csv",
        type=str | None,
        default=None,
        metavar="FILE",
        help="CSV file to write, window by window; - for stdout",
    )
    group.add_argument(
        "--json",
        type=str | None,
        default=None,
        metavar="FILE",
        help="JSON file to write at the end; - for stdout",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run that had the same options; videos that are done or have failed are "
        "not read again",
    )
    group.add_argument("--retry_failed", action="store_true", help="with --resume: read failed videos again")
    group.add_argument("--overwrite", action="store_true", help="replace existing files")
    group = parser.add_argument_group("Running")
    add_device_option(parser)
    group.add_argument("--precision", type=Precision, default="32", help="precision of the arithmetic")
    group.add_argument(
        "--cuda_graph",
        action="store_true",
        help="replay the network as a CUDA graph where a batch is full (needs a GPU): the same numbers with "
        "fewer calls",
    )
    group.add_argument(
        "--batch",
        type=int,
        default=8,
        help="windows per call of the network, from one or several videos",
    )
    group.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="threads that decode videos while the network runs, 0 for none; default: one per processor, at "
        "most 4",
    )


def add_crop_option(parser: ArgumentParser) -> None:
    """`--crop` and `--face`."""
    parser.add_argument(
        "--crop",
        type=str | None,
        default=None,
        metavar="BOX",
        help="cut the same box out of all frames: x,y,w,h in pixels, or auto for the box of a face; default: "
        "the whole frame",
    )
    parser.add_argument(
        "--face",
        type=str | None,
        default=None,
        metavar="WHICH",
        help="find and follow faces: largest, all, a number (2: the two largest) or off; default: off",
    )


def check_crop(options: Namespace) -> FaceChoice | None:
    """Refuses values of `--crop` and `--face` that cannot be used; returns the choice of faces.

    Raises:
        UsageError: see the messages.
    """
    from ifdd.data.face import parse_crop
    from ifdd.faces.tracks import parse_face

    try:
        parse_crop(options.crop)
        face = parse_face(options.face)
    except ValueError as error:
        raise UsageError(f"--{one_line(error)}") from None
    if face is not None and options.crop is not None:
        raise UsageError("--face and --crop both say what is cut out: name one of them")
    return face


def remark_on_crop(predictor: Predictor, options: Namespace) -> None:
    """Warns where whole frames are read by a network that was trained on a region of them."""
    trained = predictor.trained_crop
    if trained is not None and options.crop is None and options.face is None:
        print(
            f"ifdd: warning: the network was trained with --crop {printable(trained)} and reads whole frames "
            "now: give --crop or --face, unless these are face crops",
            file=sys.stderr,
        )


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ifdd.cli.outputs import Outputs, OutputTargets
    from ifdd.cli.progress import Progress
    from ifdd.inputs import InputError, find_videos, read_list
    from ifdd.journal import ResultsError, run_header

    face = check_crop(options)
    if options.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {options.batch}")
    if options.workers is not None and options.workers < 0:
        raise UsageError(f"--workers must be at least 0, got {options.workers}")
    if not options.inputs and options.list is None:
        raise UsageError("name at least one INPUT, or a file of them with --list")
    targets = OutputTargets(options.jsonl, options.csv, options.json)
    targets.check(options.resume, options.overwrite, options.retry_failed)
    require_file("--checkpoint", options.checkpoint)
    device = choose_device(options.device)
    if options.cuda_graph and device == "cpu":
        raise UsageError("--cuda_graph: CUDA graphs need a GPU, and this runs on a CPU (see `ifdd doctor`)")
    try:
        names = [*options.inputs, *(read_list(options.list) if options.list is not None else [])]
    except InputError as error:
        raise UsageError(f"--list: {error}") from None

    from ifdd.prediction import DEFAULT_WORKERS, Predictor

    predictor = Predictor(
        options.checkpoint, device, options.batch, options.precision, cuda_graph=options.cuda_graph
    )
    remark_on_crop(predictor, options)
    reading = predictor.reading(
        options.crop, options.windows, tail=options.tail, strict=options.strict, face=face
    )
    workers = DEFAULT_WORKERS if options.workers is None else options.workers
    settings = {
        name: options[name] for name in ("windows", "tail", "crop", "strict", "precision", "batch")
    } | {"device": device, "face": face}
    header = run_header(options.checkpoint, predictor.class_names, settings)
    videos = list(find_videos(names, options.recursive))
    lists = [] if options.list in (None, "-") else [("the list", options.list)]
    targets.spare(
        [("the checkpoint", options.checkpoint), *lists, *(("a video", path) for path, _ in videos)]
    )
    try:
        outputs = Outputs(
            targets,
            header,
            overwrite=options.overwrite,
            retry=options.retry_failed,
            quiet=options.quiet,
        )
    except ResultsError as error:
        raise UsageError(one_line(error)) from None
    with stoppable() as check, outputs, Progress(len(videos), shown=not options.quiet) as progress:
        _predict(predictor, reading, workers, videos, outputs, progress, check)
    return outputs.summarise()


def _predict(
    predictor: Predictor,
    reading: Reading,
    workers: int,
    videos: Sequence[tuple[str, ValueError | None]],
    outputs: Outputs,
    progress: Progress,
    check: Callable[[], None],
) -> None:
    from ifdd.data.video import STILL
    from ifdd.outcomes import VideoFailure, VideoPrediction

    begun = outputs.begin(videos)
    progress.skip(len(videos) - len(begun))
    for outcome in predictor.stream(begun, reading, workers=workers, offset=outputs.windows_read):
        outputs.add(outcome)
        check()
        progress.show(outcome)
        if isinstance(outcome, VideoFailure):
            print(f"ifdd: error: {one_line(outcome.error)}", file=sys.stderr)
        elif isinstance(outcome, VideoPrediction):
            if outcome.footage.damage is not None:
                print(f"ifdd: warning: {_damage(outcome)}", file=sys.stderr)
            if STILL in outcome.footage.remarks:
                print(f"ifdd: warning: {printable(outcome.path)}: {STILL}", file=sys.stderr)
            if outputs.tables:
                print_prediction(outcome, table=len(videos) <= TABLE_VIDEOS)


def _damage(prediction: VideoPrediction) -> str:
    path, damage = printable(prediction.path), one_line(prediction.footage.damage)
    return damage if damage.startswith(path) else f"{path}: {damage}"


def print_prediction(prediction: VideoPrediction, *, table: bool = True) -> None:
    """One line of the whole video, and if asked for a table with a row for each window. Of many windows the
    middle ones are left out.
    """
    console = wide_console()
    heading = _heading(prediction)
    if table:
        console.print(heading, soft_wrap=True)
        console.print(_table(prediction))
        return
    heading.append(f" {max(prediction.probabilities):.3f}")
    console.print(heading if prediction.faces else heading.append(f", {_extent(prediction)}"), soft_wrap=True)


def _heading(prediction: VideoPrediction) -> Text:
    from ifdd.outcomes import best

    heading = cell(prediction.path).append(": ").append(cell(prediction.label, "bold"))
    if len(prediction.faces) > 1:
        others = [best(prediction.class_names, face.probabilities) for face in prediction.faces[1:]]
        heading.append(f" (face {prediction.faces[0].face}; the others: ")
        heading.append(cell(", ".join(others))).append(")")
    return heading


def _table(prediction: VideoPrediction) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("seconds", no_wrap=True)
    if prediction.faces:
        table.add_column("face", justify="right")
        table.add_column("box", no_wrap=True)
    for name in prediction.class_names:
        table.add_column(cell(name), justify="right")

    def row(head: str, face: int | None, box: object, values: tuple[float, ...]) -> None:
        place = [str(face), str(box or "")] if prediction.faces else []
        top = max(range(len(values)), key=values.__getitem__)
        shares = [Text(f"{v:.3f}", style="bold" if i == top else "") for i, v in enumerate(values)]
        table.add_row(head, *place, *shares)

    count = len(prediction.windows)
    half = TABLE_WINDOWS // 2
    for number, window in enumerate(prediction.windows):
        if count <= TABLE_WINDOWS or number < half or number >= count - half:
            span = f"{window.start_seconds:.2f} - {window.stop_seconds:.2f}"
            row(span, window.face, window.box, window.probabilities)
        elif number == half:
            table.add_row(f"{count - 2 * half} more windows")
    table.add_section()
    for face in prediction.faces:
        row(_windows(len(face.windows)), face.face, "", face.probabilities)
    if not prediction.faces:
        row(_extent(prediction), None, "", prediction.probabilities)
    return table


def _windows(count: int) -> str:
    return f"{count} window{'s' * (count != 1)}"


def _extent(prediction: VideoPrediction) -> str:
    """The frames that the mean was taken over."""
    footage = prediction.footage
    if footage.stretched:
        return f"whole video (short: {counted(footage.frames_read, 'frame')}, stretched)"
    if footage.frames_used < footage.frames_read:
        return f"{footage.frames_used} of {footage.frames_read} frames"
    return "whole video" if footage.damage is None else f"readable {counted(footage.frames_read, 'frame')}"
