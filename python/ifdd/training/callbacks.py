"""Callbacks of a training: checkpoints, progress, curves, an estimate of the time."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar

from ifdd.curves import COLUMNS, draw_curves
from ifdd.training.module import Recogniser
from ifdd.training.skipped import SkippedVideos
from ifdd.whole import write_whole


class RunCheckpoint(ModelCheckpoint):
    """One file in the folder of the run, replaced at the end of an epoch after its validation.

    With a score to watch, an epoch as good as the best so far replaces it: it has trained longer. A run whose
    folder was moved goes on with the scores it had.

    Args:
        path: the file.
        monitor: the score; None: every epoch replaces the file.
        saved: called when the file of an epoch is there.
    """

    def __init__(
        self, path: Path, monitor: str | None = None, saved: Callable[[], object] = lambda: None
    ) -> None:
        self.saved = saved
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_global_zero:
            self.saved()

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Whether an epoch with this score is saved."""
        best = self.best_k_models.get(self.kth_best_model_path)
        return current is not None and (best is None or bool(current >= best))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the scores; the files are where this run is now."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        moved = {
            **state_dict,
            "dirpath": self.dirpath,
            "best_k_models": {here(path): score for path, score in state_dict["best_k_models"].items()},
            **{
                name: here(state_dict[name])
                for name in ("best_model_path", "kth_best_model_path", "last_model_path")
            },
        }
        super().load_state_dict(moved)


class ProgressBar(RichProgressBar):
    """Lightning's bar, with epochs counted from 1 as everywhere in the commands."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        # As wide as the other bar's description, or the bars jump.
        return f"{text:{len(self.validation_description)}}"


class History(Callback):
    """Collects the numbers of the epochs; :meth:`write` makes ``metrics.csv`` and ``curves.png`` of them.

    The rows are kept in the checkpoints, so a resumed training goes on with those of the epochs it stands on.
    An epoch is written only when its checkpoint is there: no kill takes back what was reported. The row that
    a kill between both leaves out is written when the training goes on.
    A drawing takes a fraction of a second: where epochs are as short, some wait for the next one or the end.
    """

    def __init__(self, out: Path, pause: float = 5.0) -> None:
        self.out = out
        self.pause = pause
        self.rows: list[dict[str, float]] = []
        self._written: list[dict[str, float]] = []
        self._drawn = -math.inf
        self._fresh = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the epoch."""
        # Reading them takes the mean over the ranks, so all of them read.
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Recogniser)
        logged["lr"] = pl_module.schedule(trainer.current_epoch)
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        for name, column in COLUMNS.items():
            if math.isfinite(logged.get(name, math.nan)):
                row[column] = logged[name]
        self.rows = [*(old for old in self.rows if old["epoch"] < row["epoch"]), row]

    def write(self) -> None:
        """Writes the table, and draws the curves unless they were drawn a moment ago."""
        self._written, self._fresh = self.rows, True
        table = io.StringIO()
        writer = csv.DictWriter(table, ["epoch", *COLUMNS.values()], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._written)
        write_whole(self.out / "metrics.csv", table.getvalue())
        if time.monotonic() - self._drawn >= self.pause:
            self._draw()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what the checkpoint holds of the epochs before."""
        if self.rows and trainer.is_global_zero:
            self.write()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws what was not drawn yet."""
        self._draw_rest()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Draws what was not drawn yet, where the training ends early."""
        self._draw_rest()

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the rows of the checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]

    def _draw_rest(self) -> None:
        if self._fresh:
            self._draw()

    def _draw(self) -> None:
        draw_curves(self._written, self.out / "curves.png")
        self._drawn, self._fresh = time.monotonic(), False


class GatheredSkips(Callback):
    """Brings the videos that other ranks left out to the first, which writes them, at the end of an epoch."""

    def __init__(self, skipped: SkippedVideos) -> None:
        self.skipped = skipped

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers the lists."""
        if trainer.world_size == 1:
            return
        gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        own = [] if trainer.is_global_zero else self.skipped.take()
        torch.distributed.gather_object(own, gathered)
        for rows in gathered or ():
            self.skipped.merge(rows)


class LimitReached(Exception):  # noqa: N818  (an end that was asked for)
    """Ends an epoch in the middle; the text names the limit."""


class RunLimits(Callback):
    """Ends a run after a time or a number of steps, for clusters that end jobs by force.

    Whole epochs are what a training goes on from. So a run also ends early, after an epoch, where another one
    as long would not fit into the time. An epoch that is cut short is lost.

    Args:
        max_seconds: from now on; None: no limit.
        steps: of the optimiser, in this run; None: no limit.
        clock: seconds.
    """

    def __init__(
        self, max_seconds: float | None, steps: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_seconds = max_seconds
        self.steps = steps
        self.clock = clock
        self.reached: str | None = None
        self._began = self._epoch_began = clock()
        self._first_step: int | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of an epoch."""
        self._epoch_began = self.clock()
        if self._first_step is None:
            self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Ends the run at a limit.

        Raises:
            LimitReached: on all ranks together.
        """
        done = trainer.global_step - (self._first_step or 0)
        last = trainer.is_last_batch
        if self.steps is not None and done >= self.steps:
            self._stop(trainer, f"--limit_steps {self.steps}", last)
        elif self.max_seconds is not None and self._agree(
            trainer, self.clock() - self._began >= self.max_seconds
        ):
            self._stop(trainer, f"--max_time ({duration(self.max_seconds)})", last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the run where the next epoch would not fit."""
        if self.max_seconds is None or self.reached:
            return
        now = self.clock()
        if self._agree(trainer, now - self._began + now - self._epoch_began > self.max_seconds):
            self._stop(trainer, f"--max_time ({duration(self.max_seconds)})", True)

    def _stop(self, trainer: pl.Trainer, limit: str, whole_epoch: bool) -> None:
        self.reached = limit
        if not whole_epoch:
            raise LimitReached(limit)
        trainer.should_stop = True

    @staticmethod
    def _agree(trainer: pl.Trainer, mine: bool) -> bool:
        """Whether any rank's clock says so."""
        return trainer.strategy.reduce_boolean_decision(mine, all=False)


class TimeEstimate(Callback):
    """Says after the first steps, and again after the first epoch, how long the training will take.

    Args:
        say: receives each line.
        steps: batches that are timed, after a first one that is not: it warms up.
    """

    def __init__(self, say: Callable[[str], object], steps: int = 5) -> None:
        self.say = say
        self.steps = steps
        self._batches = 0
        self._started = 0.0
        self._epoch_started: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the first epoch: estimates from its whole time, validation included."""
        now = time.monotonic()
        left = (trainer.max_epochs or 0) - trainer.current_epoch
        if self._epoch_started is not None and self._epoch_started > 0:
            each = now - self._epoch_started
            # A resumed training begins with another one.
            which = "the first epoch" if trainer.current_epoch == 1 else f"epoch {trainer.current_epoch}"
            self.say(f"{which} took {duration(each)}; about {duration(each * left)} to go")
            self._epoch_started = 0.0
        elif self._epoch_started is None:
            self._epoch_started = now

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """After the first batches, unless the epoch ended before: estimates from their time."""
        if self._epoch_started == 0.0:
            return
        self._batches += 1
        if self._batches == 1:
            self._started = time.monotonic()
        elif self._batches == 1 + self.steps:
            each = (time.monotonic() - self._started) / self.steps
            epochs = (trainer.max_epochs or 0) - trainer.current_epoch
            left = epochs * int(trainer.num_training_batches) - self._batches
            self.say(f"{each:.2g} s a batch: about {duration(each * left)} to go, without validation")


def duration(seconds: float) -> str:
    """A time as people say it: `40 s`, `12 min`, `3 h 20 min`, `2 days 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
