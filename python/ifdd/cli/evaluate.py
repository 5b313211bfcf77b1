"""Measure a checkpoint on a test set: WAR (accuracy), UAR (mean recall of the classes) and the recall of each
class.

A video with several windows counts once: the logits of its windows are averaged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import (
    Parser,
    add_test_options,
    choose_device,
    data_config,
    leave_ranks,
    quiet_lightning,
    require_data,
    setting_errors,
    shows_progress,
    wide_console,
)
from ifdd.cli.paths import require_file, require_writable_file, require_writable_folder
from ifdd.cli.signals import stoppable
from ifdd.text import cell, counted, printable
from ifdd.training.config import TrainingConfig
from ifdd.training.launch import current_launch

if TYPE_CHECKING:
    from ifdd.training.config import DataConfig
    from ifdd.training.metrics import Scores

SUMMARY = "measure a checkpoint on a test set"
USAGE = "--checkpoint CHECKPOINT --data DATA [options]"
TRAINING_ONLY = frozenset(
    {*("soft_labels", "on_error", "validation", "batch_size", "augment"), *("train_size", "posed")}
)
"""Options of the data that change nothing in a test."""


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="weights: model.safetensors, best.ckpt or last.ckpt of `ifdd fit`, or what `ifdd convert` wrote",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder for scores.json and confusion.png; default: the folder of the checkpoint",
    )
    add_test_options(parser, TRAINING_ONLY)
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def parse(parser: Parser, arguments: Sequence[str]) -> Namespace:
    """Options of a command line. Those of a training may stand in a file that is meant for both, but typed
    here they would be ignored.
    """
    options: Namespace = parser.parse_args(arguments)
    for name in options.typed:
        if parser.is_hidden(name):
            raise UsageError(f"--{name} is for training, a test does not use it: omit it")
    return options


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    checkpoint_path = require_file("--checkpoint", options.checkpoint)
    choose_device(options.device)
    if options.data is None:
        # Said before the checkpoint is read.
        data_config(options)
    out = Path(options.out) if options.out else checkpoint_path.absolute().parent
    require_writable_folder("--out", out)

    with setting_errors():
        config = TrainingConfig(
            device=options.device,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
        )
        first = current_launch(config).is_first
    quiet_lightning(first)
    from ifdd.checkpoint import load_checkpoint
    from ifdd.training.overlap import overlap_warning
    from ifdd.training.report import FIGURE, SCORES, holds_this_test, write_report
    from ifdd.training.run import evaluate
    from ifdd.training.watch import ReportedError

    if out.is_dir():
        for name in (SCORES, FIGURE):
            require_writable_file("--out", out / name)
    checkpoint = load_checkpoint(checkpoint_path)
    if options.data in ("list", "folder") and not options.classes:
        # The labels of lists are numbers, a class may have no folder: the checkpoint knows them all.
        options.classes = list(checkpoint.class_names)
    data = data_config(options)
    require_data(data)
    _require_classes(data, checkpoint.class_names)
    there = (out / SCORES).exists()
    another = there and not holds_this_test(out, checkpoint_path, data)
    if first:
        print(f"data set     {_data_set(data)}")
        print(f"checkpoint   {printable(str(checkpoint_path))} ({checkpoint.origin})", flush=True)
        if (warning := overlap_warning(checkpoint_path, data)) is not None:
            print(f"ifdd test: warning: {warning}", file=sys.stderr)
    try:
        with setting_errors(), stoppable():
            scores = evaluate(
                checkpoint, replace(config, data=data), progress=shows_progress(options) and first
            )
    except ReportedError:
        leave_ranks()
    if not first:
        return 0
    print_scores(scores)
    write_report(out, scores, checkpoint_path, checkpoint, data)
    print(f"{'written' if not there else 'replaced'}: {out / SCORES}, {out / FIGURE}")
    if another:
        print(
            f"ifdd test: warning: {printable(out / SCORES)} held the scores of another test; give each test "
            "a folder of its own with --out",
            file=sys.stderr,
        )
    return 0


def _require_classes(data: DataConfig, class_names: Sequence[str]) -> None:
    """Refuses named classes that are not those of the checkpoint.

    Raises:
        UsageError: others, or the same in another order.
    """
    if data.class_names in (None, tuple(class_names)):
        return
    inside = ", ".join(map(printable, class_names))
    way = "omit --classes" if data.name in ("list", "folder") else "name these, or omit --classes"
    raise UsageError(f"--classes: those of the checkpoint are {inside}, in that order; {way}")


def _data_set(data: DataConfig) -> str:
    if data.name == "synthetic":
        return f"synthetic, {counted(data.test_size, 'drawn test clip')}"
    fold = f", fold {data.fold}" if data.name in ("dfew", "mafw") else ""
    places = "".join(f", {printable(place)}" for place in (data.root, data.test_list) if place is not None)
    return f"{data.name}{fold}, test part{places}"


def print_scores(scores: Scores) -> None:
    """WAR, UAR and the recall of each class."""
    from rich.table import Table

    clips = scores.confusion.sum(1).tolist()
    title = f"WAR {100 * scores.war:.2f} %   UAR {100 * scores.uar:.2f} %   of {counted(sum(clips), 'clip')}"
    console = wide_console()
    # Not the title of the table, which would be broken to its width.
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    table = Table()
    for heading, side in (("class", "left"), ("clips", "right"), ("recall", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name, recall, count in zip(scores.class_names, scores.recall, clips, strict=True):
        table.add_row(cell(name), str(count), "no clip" if recall is None else f"{100 * recall:.2f} %")
    console.print(table)
    if scores.missing:
        counting = len(scores.class_names) - len(scores.missing)
        names = ", ".join(map(printable, scores.missing))
        print(f"UAR is the mean of {counting} of {len(scores.class_names)} classes: no clip of {names}")
