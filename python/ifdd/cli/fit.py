"""Train a network. Writes the best weights, with the class list, to OUT/model.safetensors."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import (
    add_training_options,
    choose_device,
    quiet_lightning,
    training_config,
)

SUMMARY = "train a network"
USAGE = "--out OUT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", required=True, help="folder of this run")
    parser.add_argument("--resume", action="store_true", help="go on with the training in OUT")
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")
    add_training_options(parser)


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    from pathlib import Path

    config = training_config(options)
    choose_device(config.device)
    out = Path(options.out)
    started = (out / "last.ckpt").exists()
    if started and not options.resume:
        raise UsageError(f"--out: {out} already holds a training; choose another folder or add --resume")
    if options.resume and not started:
        raise UsageError(f"--resume: {out} holds no training to go on with (no last.ckpt)")

    quiet_lightning()
    from ifdd.training.run import fit

    result = fit(config, out, resume=options.resume, progress=options.progress)
    print(f"best epoch: {result.epoch}")
    if result.validation is not None:
        war, uar = (100 * result.validation[name] for name in ("war", "uar"))
        print(f"held-out part of the training set: WAR {war:.2f} %, UAR {uar:.2f} %")
    print(f"weights: {result.checkpoint}")
    return 0
