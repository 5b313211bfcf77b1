"""Train and test all folds of DFEW or MAFW, and write the table that papers print: WAR and UAR of each fold,
their mean and deviation, and the confusion matrix of all test clips.

OUT/fold_1 to OUT/fold_5 hold the files that "ifdd fit" and "ifdd test" write. To continue an interrupted run,
give the same command again: finished folds are not repeated. See docs/reproduce.md.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ifdd.cli._commands import EXIT_FAILED, UsageError
from ifdd.cli.common import (
    add_training_options,
    choose_device,
    leave_ranks,
    quiet_lightning,
    require_data,
    setting_errors,
    shows_progress,
    training_config,
    wide_console,
)
from ifdd.cli.fit import announce, changes
from ifdd.cli.paths import require_file, require_writable_folder
from ifdd.cli.signals import stoppable
from ifdd.training.launch import current_launch

if TYPE_CHECKING:
    from ifdd.training.folds import FoldTable

SUMMARY = "train and test all folds of a benchmark"
USAGE = "--data {dfew,mafw} --root ROOT --out OUT [options]"


def configure(parser: ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", required=True, help="folder for all folds")
    parser.add_argument(
        "--folds", type=list[int], default=[1, 2, 3, 4, 5], help="folds to train and test: [1,3]"
    )
    parser.add_argument(
        "--at_once",
        type=int,
        default=1,
        help="folds to train in parallel, each on a GPU of its own (on a CPU: all on the same)",
    )
    parser.add_argument("--progress", type=bool, default=True, help="show progress bars")
    add_training_options(parser)


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The options, and as they were typed: folds may need processes of their own."""
    options = parser.parse_args(arguments)
    if any(argument.partition("=")[0] == "--fold" for argument in arguments):
        raise UsageError("--fold: name folds with --folds [1,3]")
    options["arguments"] = list(arguments)
    return options


def run(options: Namespace) -> int:
    """Runs the command; returns the exit code."""
    out = Path(options.out)
    require_writable_folder("--out", out)
    config = training_config(options)
    require_data(config.data)
    device = choose_device(config.device)
    with setting_errors():
        launch = current_launch(config)
    quiet_lightning(launch.is_first)
    from ifdd.training.folds import FOLDS, finished, read_table, run_fold, write_table
    from ifdd.training.resume import ResumeError
    from ifdd.training.watch import ReportedError

    wanted = sorted(set(options.folds))
    if not wanted or not set(wanted) <= set(FOLDS):
        raise UsageError(f"--folds: expected some of {list(FOLDS)}, got {options.folds}")
    if options.at_once < 1:
        raise UsageError(f"--at_once: expected at least 1, got {options.at_once}")
    if options.at_once > 1 and launch.world_size > 1:
        raise UsageError("--at_once: each fold then trains on one device; omit --at_once or --devices")
    try:
        with setting_errors():
            left = [fold for fold in wanted if not finished(config, out, fold)]
    except ResumeError as error:
        started = f"{error.folder} was started with {changes(error)}"
        raise UsageError(f"--out: {started}; give those, or another --out") from error
    if left and config.init is not None:
        require_file("--init", config.init)
    if launch.is_first:
        _say(f"folds          {len(wanted) - len(left)} of {len(wanted)} are done; to do: {left or 'none'}")
    # Lightning starts the processes of a training by running this command again, which must be about one
    # fold then.
    apart = options.at_once > 1 or (launch.world_size > 1 and launch.starter == "ifdd")
    if apart and len(left) > 1:
        failed = _run_apart(left, options, device)
        if failed:
            print(f"ifdd folds: error: failed: {failed}; the others are kept", file=sys.stderr)
            return EXIT_FAILED
    else:
        for fold in left:
            if launch.is_first:
                _say(f"fold           {fold}")
            try:
                with setting_errors():
                    progress = shows_progress(options) and launch.is_first
                    run_fold(config, out, fold, progress=progress, announce=announce)
            except ReportedError:
                leave_ranks()
    if launch.is_first:
        table = read_table(out)
        write_table(out, table, f"{config.data.name}, {len(table.folds)} folds")
        print_table(table)
        _say(f"written: {out / 'folds.csv'}, {out / 'confusion.csv'}, {out / 'confusion.png'}")
    return 0


def _run_apart(folds: Sequence[int], options: Namespace, device: str) -> list[int]:
    """Each fold as a command of its own, ``--at_once`` at a time; returns those that failed."""
    places: queue.Queue[str | None] = queue.Queue()
    for place in _gpus() if device == "cuda" and options.at_once > 1 else [None] * options.at_once:
        places.put(place)

    running: set[subprocess.Popen[bytes]] = set()

    def train(fold: int) -> bool:
        place = places.get()
        try:
            gpu = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
            command = [sys.executable, "-m", "ifdd", "folds", *options.arguments]
            single = ["--folds", f"[{fold}]", "--at_once", "1"]
            with subprocess.Popen([*command, *single], env={**os.environ, **gpu}) as process:
                running.add(process)
                good = process.wait() == 0
            running.discard(process)
            return good
        finally:
            places.put(place)

    with stoppable(), ThreadPoolExecutor(options.at_once) as pool:
        trainings = [pool.submit(train, fold) for fold in folds]
        try:
            ended = [training.result() for training in trainings]
        except BaseException:
            for training in trainings:
                training.cancel()  # if it has not begun
            for process in tuple(running):
                process.terminate()
            raise
    return [fold for fold, good in zip(folds, ended, strict=True) if not good]


def _gpus() -> list[str | None]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(visible.split(",")) if visible else [str(n) for n in range(torch.cuda.device_count())]


def print_table(table: FoldTable) -> None:
    """WAR and UAR of each fold, mean, deviation and pooled, in per cent."""
    from rich.table import Table

    shown = Table(title=f"folds {', '.join(map(str, table.folds))}")
    shown.add_column("fold")
    for heading in ("clips", "WAR", "UAR"):
        shown.add_column(heading, justify="right")
    for name, clips, war, uar in table.rows():
        scores = ("" if value is None else f"{100 * value:.2f} %" for value in (war, uar))
        shown.add_row(name, "" if clips is None else str(clips), *scores)
    wide_console().print(shown)
    if table.missing:
        which = ", ".join(map(str, table.missing))
        one = len(table.missing) == 1
        _say(f"not complete: fold{'' if one else 's'} {which} {'is' if one else 'are'} missing")


def _say(text: str) -> None:
    print(text, flush=True)
