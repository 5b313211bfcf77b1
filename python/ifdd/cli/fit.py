"""Train a network.

The folder OUT receives the best weights with the class list (model.safetensors), the state of the training
(last.ckpt, best.ckpt), its settings (config.yaml), and the loss, scores and learning rate of every epoch
(metrics.csv, curves.png). See docs/training.md.
"""

from __future__ import annotations

import difflib
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import UsageError
from ifdd.cli.common import (
    add_training_options,
    choose_device,
    leave_ranks,
    one_line,
    option_of,
    quiet_lightning,
    require_data,
    setting_errors,
    shows_progress,
    training_config,
)
from ifdd.cli.paths import require_file, require_writable_folder
from ifdd.cli.signals import stoppable
from ifdd.text import printable
from ifdd.training.folder import LAST, SETTINGS
from ifdd.training.launch import current_launch

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from ifdd.training.config import DataConfig, TrainingConfig
    from ifdd.training.plan import TrainingPlan
    from ifdd.training.resume import ResumeError

SUMMARY = "train a network"
USAGE = "--data DATA --out OUT [options]\n       ifdd fit --out OUT --resume [--epochs EPOCHS]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", required=True, help="folder for the files of this training")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the training in OUT, with its settings; --epochs may be raised",
    )
    parser.add_argument("--progress", type=bool, default=True, help="show a progress bar")
    parser.add_argument(
        "--max_time",
        type=str | None,
        default=None,
        help="stop after the last whole epoch that fits into DD:HH:MM:SS; --resume continues",
    )
    parser.add_argument(
        "--limit_steps",
        type=int | None,
        default=None,
        help="stop after this many steps; an unfinished epoch is lost",
    )
    parser.add_argument(
        "--logger",
        type=str | None,
        default=None,
        help="an additional Lightning logger: its class, or YAML as for LightningCLI: "
        "'{class_path: WandbLogger, init_args: {project: faces}}'",
    )
    add_training_options(parser)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Options of a command line; those of a training to resume are read first, so that given ones win."""
    options = parser.parse_args(arguments)
    settings = Path(options.out) / SETTINGS
    if options.resume and settings.is_file():
        options = parser.parse_args(["--config", str(settings), *arguments])
    return options


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    out = Path(options.out)
    require_writable_folder("--out", out)
    started = (out / LAST).exists()
    if started and not options.resume:
        raise UsageError(f"--out: {out} already holds a training; choose another folder or add --resume")
    if options.resume and not started:
        raise UsageError(_nothing_to_resume(out))
    config = training_config(options)
    try:
        require_data(config.data)
    except UsageError as error:
        saved = _saved_places(out / SETTINGS, config.data) if options.resume else ""
        raise UsageError(f"{error}{saved}") from None
    if config.init is not None and not options.resume:
        require_file("--init", config.init)
    max_time = _duration(options.max_time)
    if options.limit_steps is not None and options.limit_steps < 1:
        raise UsageError(f"--limit_steps: expected at least 1, got {options.limit_steps}")
    choose_device(config.device)

    with setting_errors():
        first = current_launch(config).is_first
    quiet_lightning(first)
    from ifdd.training.callbacks import TimeEstimate
    from ifdd.training.resume import ResumeError
    from ifdd.training.run import fit
    from ifdd.training.watch import ReportedError

    try:
        with setting_errors(), stoppable() as check:
            try:
                result = fit(
                    config,
                    out,
                    resume=options.resume,
                    progress=shows_progress(options) and first,
                    callbacks=(TimeEstimate(_say),) if first else (),
                    announce=announce,
                    max_time=max_time,
                    limit_steps=options.limit_steps,
                    loggers=_loggers(options.logger),
                )
            except RuntimeError:
                # A signal to all processes of the command ends those that read videos, too, which is an
                # error of its own.
                check()
                raise
    except ResumeError as error:
        raise UsageError(_changed_settings(error)) from error
    except ReportedError:
        leave_ranks()
    except (KeyboardInterrupt, SystemExit):
        if first:
            print(f"ifdd fit: stopped; {_kept(out / LAST, options)}", file=sys.stderr)
        raise
    if not first:
        return 0
    if result.limit is not None:
        print(f"ended by {result.limit}; go on with: {_again(options)}")
    print(f"{_which_epoch(config)}: {result.epoch + 1} of {config.optim.epochs}")
    if result.validation is not None:
        war, uar = (100 * result.validation[name] for name in ("war", "uar"))
        print(f"held-out part of the training set: WAR {war:.2f} %, UAR {uar:.2f} %")
    print(f"weights: {result.checkpoint}")
    print(f"curves: {out / 'curves.png'}")
    return 0


def _nothing_to_resume(out: Path) -> str:
    """Why no training can go on in a folder, and which are near."""
    inside = _trainings(out)
    if inside:
        names = ", ".join(inside)
        return f"--resume: {printable(out)} is not a training but holds {names}; name one with --out"
    if out.is_dir():
        return f"--resume: {printable(out)} holds no training to go on with (no {LAST}); omit --resume"
    beside = _trainings(out.absolute().parent)
    near = difflib.get_close_matches(out.name, beside, 1) or beside
    there = f"; {printable(out.parent)} holds {', '.join(near)}" if near else ""
    return f"--resume: {printable(out)}: no such folder{there}"


def _trainings(folder: Path) -> list[str]:
    """Names of the folders in `folder` that a training can go on in, at most five."""
    if not folder.is_dir():
        return []
    return [printable(last.parent.name) for last in islice(sorted(folder.glob(f"*/{LAST}")), 5)]


def _saved_places(settings: Path, data: DataConfig) -> str:
    """Where a path that nobody typed comes from: words to follow on the error that it is not there."""
    saved = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    gone = [
        name
        for name in ("root", "train_list", "test_list")
        if (path := getattr(data, name)) is not None and path == saved.get(name) and not Path(path).exists()
    ]
    if not gone:
        return ""
    relative = any(not Path(getattr(data, name)).is_absolute() for name in gone)
    began = (
        ", seen from the folder that the training was started in: resume from there, or" if relative else ":"
    )
    anew = " and ".join(f"--{name}" for name in gone)
    return f" (from {printable(settings)}{began} give {anew} anew)"


def _which_epoch(config: TrainingConfig) -> str:
    """How the epoch of the exported weights was chosen."""
    if not config.data.validation:
        return "last epoch (none of the clips is held out to choose the best)"
    return "best epoch" if config.optim.select == "best" else "last epoch (--select last)"


def _duration(text: str | None) -> timedelta | None:
    """A time as Lightning's `max_time` takes it.

    Raises:
        UsageError: it is not one.
    """
    if text is None:
        return None
    try:
        days, hours, minutes, seconds = (int(part) for part in text.split(":"))
        time = timedelta(days, hours=hours, minutes=minutes, seconds=seconds)
    except (ValueError, OverflowError):
        raise UsageError(f"--max_time: expected DD:HH:MM:SS, got {text!r}") from None
    if time <= timedelta():
        raise UsageError(f"--max_time: expected more than no time, got {text!r}")
    return time


def _loggers(text: str | None) -> list[Logger]:
    """The logger that `--logger` describes, read by the library that reads the options of LightningCLI.

    Raises:
        UsageError: there is no such logger, or it cannot be made.
    """
    if text is None:
        return []
    from pytorch_lightning.loggers import Logger

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Logger, "logger")
    # jsonargparse before 4.49 has it under the other name.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        return [instantiate(parser.parse_args([f"--logger={text}"])).logger]
    except (ArgumentError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"--logger: {one_line(error)}") from error


def announce(plan: TrainingPlan) -> None:
    """Prints what will be trained, and on stderr what is odd about it."""
    for line in plan.lines():
        _say(line)
    for warning in plan.warnings():
        print(f"ifdd fit: warning: {warning}", file=sys.stderr)


def _kept(last: Path, options: Namespace) -> str:
    """The state that a stopped training left, and the way to continue it."""
    from ifdd.training.storage import load_training_checkpoint, training_record

    if not last.exists():
        return "the first epoch was not over, so there is nothing to go on from"
    done = training_record(load_training_checkpoint(last), last).epoch + 1
    epochs = "epoch 1 is" if done == 1 else f"epochs 1 to {done} are"
    return f"{epochs} saved in {printable(str(last))}; go on with: {_again(options)}"


def _again(options: Namespace) -> str:
    """The command that goes on. Settings are in the run's folder, but for the devices."""
    command = f"ifdd fit --out {printable(str(options.out))} --resume"
    counts = {name: options[name] for name in ("devices", "num_nodes") if (options[name] or 1) > 1}
    graph = ["--cuda_graph"] if options.cuda_graph else []
    return " ".join([command, *(f"--{name} {count}" for name, count in counts.items()), *graph])


def changes(error: ResumeError) -> str:
    """The settings that differ from the training to resume, in the words of the command."""
    return ", ".join(
        f"{option_of(name)} {_shown(before)} (now {_shown(now)})"
        for name, (before, now) in error.changes.items()
    )


def _changed_settings(error: ResumeError) -> str:
    return (
        f"--resume: {error.folder} was started with {changes(error)}; to go on as begun: "
        f"ifdd fit --out {error.folder} --resume; to train with other settings from its weights: "
        f"--init {error.folder / LAST} --out NEW, without --resume"
    )


def _shown(value: Any) -> str:
    """A value as an option takes it."""
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _say(text: str) -> None:
    # At once, also into a file: it is read while the training runs.
    print(text, flush=True)
