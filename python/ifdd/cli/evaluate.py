"""Measure a checkpoint on a test set: WAR (accuracy), UAR (mean recall of the classes) and the table of
classes.

A video of several windows counts once, by the mean of its windows' logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import (
    add_test_options,
    choose_device,
    data_config,
    quiet_lightning,
    wide_console,
)
from ifdd.text import cell, printable
from ifdd.whole import write_whole

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


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    checkpoint_path = Path(options.checkpoint)
    if not checkpoint_path.exists():
        raise UsageError(f"--checkpoint: {checkpoint_path} does not exist")
    device = choose_device(options.device)
    if options.data is None:
        # Said before the checkpoint is read.
        data_config(options)
    out = Path(options.out) if options.out else checkpoint_path.absolute().parent

    quiet_lightning()
    from ifdd.checkpoint import load_checkpoint
    from ifdd.figures import confusion_matrix
    from ifdd.training.config import TrainingConfig
    from ifdd.training.run import evaluate

    checkpoint = load_checkpoint(checkpoint_path)
    if options.data in ("list", "folder") and not options.classes:
        # The labels of lists are numbers, a class may have no folder: the checkpoint knows them all.
        options.classes = list(checkpoint.class_names)
    data = data_config(options)
    print(f"data set     {_data_set(data)}")
    print(f"checkpoint   {printable(str(checkpoint_path))} ({checkpoint.origin})", flush=True)
    config = TrainingConfig(data=data, device="cpu" if device == "cpu" else "cuda")
    scores = evaluate(checkpoint, config, progress=options.progress)

    print_scores(scores)
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "checkpoint": str(checkpoint_path),
        "weights": checkpoint.origin,
        "data": data.name,
        "fold": data.fold,
        "root": data.root,
        "test_list": data.test_list,
        **scores.to_dict(),
    }
    write_whole(out / "scores.json", json.dumps(report, indent=2) + "\n")
    title = f"{Path(data.test_list).name if data.test_list else data.name}: {_short(checkpoint_path)}"
    figure = confusion_matrix(scores, out / "confusion.png", title=title)
    print(f"written: {out / 'scores.json'}, {figure}")
    return 0


def _data_set(data: DataConfig) -> str:
    if data.name == "synthetic":
        return f"synthetic, {data.test_size} drawn test clips"
    fold = f", fold {data.fold}" if data.name in ("dfew", "mafw") else ""
    places = "".join(f", {printable(place)}" for place in (data.root, data.test_list) if place is not None)
    return f"{data.name}{fold}, test part{places}"


def _short(path: Path) -> str:
    """A checkpoint's name with the folder of its run."""
    return str(Path(*path.absolute().parts[-2:]))


def print_scores(scores: Scores) -> None:
    """WAR, UAR and the recall of each class."""
    from rich.table import Table

    clips = scores.confusion.sum(1).tolist()
    title = f"WAR {100 * scores.war:.2f} %   UAR {100 * scores.uar:.2f} %   of {sum(clips)} clips"
    table = Table(title=title)
    for heading, side in (("class", "left"), ("clips", "right"), ("recall", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name, recall, count in zip(scores.class_names, scores.recall, clips, strict=True):
        table.add_row(cell(name), str(count), "no clip" if recall is None else f"{100 * recall:.2f} %")
    wide_console().print(table)
