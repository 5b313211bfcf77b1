"""Recognise the expressions of videos.

A video is read in consecutive windows of as many frames as the network takes; its probabilities are the
softmax of the mean of the windows' logits. A video that cannot be read costs one line on stderr and exit
code 1; the others still run.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.common import (
    add_device_option,
    choose_device,
    parent_exists,
    usage_errors,
    wide_console,
)
from ifdd.text import one_line

if TYPE_CHECKING:
    from ifdd.prediction import VideoPrediction

SUMMARY = "recognise the expressions of videos"
USAGE = "VIDEO [VIDEO ...] --checkpoint CHECKPOINT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video file or folder of numbered frames")
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    add_crop_option(parser)
    parser.add_argument(
        "--windows",
        type=Literal["all", "centre"],
        default="all",
        help="all windows of a video or the centre one",
    )
    parser.add_argument(
        "--json", type=str | None, default=None, metavar="FILE", help="write JSON here, - for stdout"
    )
    parser.add_argument(
        "--csv", type=str | None, default=None, metavar="FILE", help="write CSV here, - for stdout"
    )
    add_device_option(parser)


def add_crop_option(parser: ArgumentParser) -> None:
    """`--crop`."""
    parser.add_argument(
        "--crop",
        type=str | None,
        default=None,
        metavar="BOX",
        help="the face: x,y,w,h in pixels, or auto to find it; default: the whole frame",
    )


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ifdd.data.face import parse_crop

    with usage_errors():
        parse_crop(options.crop)
    parent_exists(options.json, "--json")
    parent_exists(options.csv, "--csv")
    if options.json == options.csv == "-":
        raise UsageError("--json - and --csv - cannot both write to stdout")
    device = choose_device(options.device)

    from ifdd.prediction import Predictor

    predictor = Predictor(options.checkpoint, device)
    predictions: list[VideoPrediction] = []
    failed = False
    for video in options.videos:
        try:
            predictions.append(predictor.predict(video, options.crop, options.windows))
        except (ValueError, OSError) as error:
            failed = True
            print(f"ifdd: error: {one_line(error)}", file=sys.stderr)
    if "-" not in (options.json, options.csv):
        for prediction in predictions:
            print_prediction(prediction)
    if options.json is not None:
        with _opened(options.json) as file:
            json.dump([prediction.to_dict() for prediction in predictions], file, indent=2)
            file.write("\n")
    if options.csv is not None:
        with _opened(options.csv) as file:
            _write_csv(file, predictor.class_names, predictions)
    return EXIT_FAILED if failed else 0


def print_prediction(prediction: VideoPrediction) -> None:
    """A table: one line per window, then the whole video."""
    from rich.table import Table

    table = Table()
    table.add_column("seconds", no_wrap=True)
    for name in prediction.class_names:
        table.add_column(name, justify="right")

    def cells(values: tuple[float, ...]) -> list[str]:
        best = max(range(len(values)), key=values.__getitem__)
        return [f"[bold]{v:.3f}[/bold]" if i == best else f"{v:.3f}" for i, v in enumerate(values)]

    for window in prediction.windows:
        span = f"{window.start_seconds:.2f} - {window.stop_seconds:.2f}"
        table.add_row(span, *cells(window.probabilities))
    table.add_section()
    table.add_row("whole video", *cells(prediction.probabilities))
    console = wide_console()
    console.print(f"{prediction.path}: [bold]{prediction.label}[/bold]", highlight=False)
    console.print(table)


def _write_csv(file: TextIO, class_names: tuple[str, ...], predictions: list[VideoPrediction]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "window", "start_seconds", "stop_seconds", "label", *class_names])
    for prediction in predictions:
        for number, window in enumerate(prediction.windows):
            best = max(range(len(class_names)), key=window.probabilities.__getitem__)
            span = [window.start_seconds, window.stop_seconds]
            writer.writerow([prediction.path, number, *span, class_names[best], *window.probabilities])
        span = [prediction.windows[0].start_seconds, prediction.windows[-1].stop_seconds]
        writer.writerow([prediction.path, "mean", *span, prediction.label, *prediction.probabilities])


@contextmanager
def _opened(target: str) -> Iterator[TextIO]:
    if target == "-":
        yield sys.stdout
    else:
        with Path(target).open("w", newline="") as file:
            yield file
