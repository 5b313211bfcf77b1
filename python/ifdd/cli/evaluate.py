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

if TYPE_CHECKING:
    from ifdd.training.metrics import Scores

SUMMARY = "measure a checkpoint on a test set"
USAGE = "--checkpoint CHECKPOINT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--checkpoint", required=True, help="weights written by `ifdd fit` or `ifdd convert`")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder for scores.json and confusion.png; default: the folder of the checkpoint",
    )
    add_test_options(parser)
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    data = data_config(options)
    device = choose_device(options.device)
    checkpoint_path = Path(options.checkpoint)
    if not checkpoint_path.is_file():
        raise UsageError(f"--checkpoint: {checkpoint_path} does not exist")
    out = Path(options.out) if options.out else checkpoint_path.absolute().parent

    quiet_lightning()
    from ifdd.checkpoint import load_checkpoint
    from ifdd.figures import confusion_matrix
    from ifdd.training.config import TrainingConfig
    from ifdd.training.run import evaluate

    checkpoint = load_checkpoint(checkpoint_path)
    config = TrainingConfig(data=data, device="cpu" if device == "cpu" else "cuda")
    scores = evaluate(checkpoint, config, progress=options.progress)

    print_scores(scores)
    out.mkdir(parents=True, exist_ok=True)
    report = {"checkpoint": str(checkpoint_path), "data": data.name, "fold": data.fold, **scores.to_dict()}
    (out / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    figure = confusion_matrix(scores, out / "confusion.png", title=f"{data.name}, {checkpoint_path.name}")
    print(f"written: {out / 'scores.json'}, {figure}")
    return 0


def print_scores(scores: Scores) -> None:
    """WAR, UAR and the recall of each class."""
    from rich.table import Table

    table = Table(title=f"WAR {100 * scores.war:.2f} %   UAR {100 * scores.uar:.2f} %")
    for heading, side in (("class", "left"), ("clips", "right"), ("recall", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name, recall, clips in zip(
        scores.class_names, scores.recall, scores.confusion.sum(1).tolist(), strict=True
    ):
        table.add_row(name, str(clips), "no clip" if recall is None else f"{100 * recall:.2f} %")
    wide_console().print(table)
