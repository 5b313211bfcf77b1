"""A cross-validation: a training and a test for each fold, and the table that papers print.

DFEW and MAFW come in five folds. Each fold has its own folder; what is finished there is not done again, so a
cross-validation that was stopped anywhere goes on where it was.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ifdd.checkpoint import load_checkpoint
from ifdd.figures import confusion_matrix
from ifdd.training.config import SettingError, TrainingConfig
from ifdd.training.folder import LAST
from ifdd.training.launch import current_launch
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.training.plan import TrainingPlan
from ifdd.training.report import FIGURE, SCORES, read_scores, write_report
from ifdd.training.resume import record_to_resume
from ifdd.training.run import evaluate, fit
from ifdd.whole import write_whole

FOLDS = (1, 2, 3, 4, 5)
"""Of DFEW as of MAFW."""
TABLE = "folds.csv"
COUNTS = "confusion.csv"


@dataclass(frozen=True)
class FoldTable:
    """Scores of the folds that are finished, and of their clips taken together (``pooled``)."""

    folds: dict[int, Scores]
    pooled: Scores

    @property
    def missing(self) -> tuple[int, ...]:
        """Folds without scores: with any, this is not the number that papers print."""
        return tuple(fold for fold in FOLDS if fold not in self.folds)

    def summary(self) -> dict[str, tuple[float, float | None]]:
        """``war`` and ``uar``: mean over the folds, and their standard deviation (of a sample: n - 1), None
        for a single fold.
        """
        found: dict[str, tuple[float, float | None]] = {}
        for name in ("war", "uar"):
            values = [getattr(scores, name) for scores in self.folds.values()]
            found[name] = (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)
        return found

    def rows(self) -> list[tuple[str, int | None, float | None, float | None]]:
        """Name, test clips, WAR and UAR (0 to 1) of each fold, then mean, deviation and pooled."""
        summary = self.summary()
        counted = [(str(fold), scores) for fold, scores in self.folds.items()]
        rows: list[tuple[str, int | None, float | None, float | None]] = [
            (name, int(scores.confusion.sum()), scores.war, scores.uar) for name, scores in counted
        ]
        rows.append(("mean", None, summary["war"][0], summary["uar"][0]))
        rows.append(("deviation", None, summary["war"][1], summary["uar"][1]))
        rows.append(("pooled", int(self.pooled.confusion.sum()), self.pooled.war, self.pooled.uar))
        return rows


def fold_folder(out: Path, fold: int) -> Path:
    """Where the run of a fold lies."""
    return out / f"fold_{fold}"


def finished(config: TrainingConfig, out: Path, fold: int) -> bool:
    """Whether a fold is trained with these settings, to the last epoch, and tested.

    Raises:
        ifdd.training.resume.ResumeError: it was started with other settings.
        ValueError: its checkpoint cannot be read, or more epochs are done than asked for.
    """
    folder = fold_folder(out, fold)
    if not (folder / LAST).is_file():
        return False
    record = record_to_resume(of_fold(config, fold), folder / LAST)
    return record.epoch + 1 == config.optim.epochs and (folder / SCORES).is_file()


def of_fold(config: TrainingConfig, fold: int) -> TrainingConfig:
    """The settings of a fold.

    Raises:
        SettingError: the data set has no folds.
    """
    if config.data.name not in ("dfew", "mafw"):
        raise SettingError("data.name", f"must be dfew or mafw, which have folds, got {config.data.name}")
    return replace(config, data=replace(config.data, fold=fold))


def run_fold(
    config: TrainingConfig,
    out: Path,
    fold: int,
    *,
    progress: bool = False,
    announce: Callable[[TrainingPlan], None] | None = None,
) -> None:
    """Trains a fold, or goes on with it, and tests it; its folder then holds ``scores.json``.

    The processes that Lightning starts for a training with several devices end with it: the test is the first
    one's alone. Those of torchrun and SLURM test together, too.

    Raises:
        ValueError, ifdd.training.module.TrainingError: see :func:`ifdd.training.run.fit`.
    """
    config = of_fold(config, fold)
    folder = fold_folder(out, fold)
    launch = current_launch(config)
    if launch.is_first:
        # Of fewer epochs, if there are any.
        (folder / SCORES).unlink(missing_ok=True)
    resume = (folder / LAST).is_file()
    result = fit(config, folder, resume=resume, progress=progress, announce=announce)
    if launch.starter == "ifdd":
        if not launch.is_first:
            return
        config = replace(config, devices=1, num_nodes=1, strategy="auto")
    checkpoint = load_checkpoint(result.checkpoint)
    scores = evaluate(checkpoint, config, progress=progress)
    if launch.is_first:
        write_report(folder, scores, result.checkpoint, checkpoint, config.data)


def read_table(out: Path) -> FoldTable:
    """The table of the folds that are tested.

    Raises:
        ValueError: none is, or they have different classes.
    """
    files = {fold: fold_folder(out, fold) / SCORES for fold in FOLDS}
    folds = {fold: read_scores(file) for fold, file in files.items() if file.is_file()}
    if not folds:
        raise ValueError(f"{out}: no fold is tested")
    names = {scores.class_names for scores in folds.values()}
    if len(names) > 1:
        raise ValueError(f"{out}: the folds have different classes: {' and '.join(map(str, sorted(names)))}")
    pooled = torch.stack([scores.confusion for scores in folds.values()]).sum(0)
    return FoldTable(folds, scores_from_confusion(pooled, names.pop()))


def write_table(out: Path, table: FoldTable, title: str) -> None:
    """Writes ``folds.csv``, and the pooled confusion matrix as ``confusion.csv`` and ``confusion.png``."""
    names = table.pooled.class_names
    write_whole(out / TABLE, _csv([("fold", "clips", "war", "uar"), *table.rows()]))
    counts = table.pooled.confusion.tolist()
    rows = [(name, *row) for name, row in zip(names, counts, strict=True)]
    write_whole(out / COUNTS, _csv([("true \\ predicted", *names), *rows]))
    confusion_matrix(table.pooled, out / FIGURE, title=title)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
