"""Which trainings may go on from a checkpoint, and what may be other than it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifdd.checkpoint.training import TrainingRecord
from ifdd.text import printable
from ifdd.training.config import SettingError, TrainingConfig
from ifdd.training.storage import load_training_checkpoint, training_record


class ResumeError(ValueError):
    """A training that cannot go on with these settings.

    ``folder``: of the run; ``changes``: dotted name of each setting that may not change -> (value that the
    training was started with, value given now).
    """

    def __init__(self, folder: Path, changes: dict[str, tuple[Any, Any]]) -> None:
        self.folder = folder
        self.changes = changes
        listed = "; ".join(f"{name} was {before!r}, now {now!r}" for name, (before, now) in changes.items())
        super().__init__(f"cannot resume {folder} with other settings: {listed}")


def record_to_resume(config: TrainingConfig, last: Path) -> TrainingRecord:
    """The record of a checkpoint that a training with these settings may go on from.

    The number of epochs may be another one, down to those that are done: the learning rate then follows the
    schedule of the new number from the next epoch on. Paths, device and loaders may change as they like.

    Raises:
        ResumeError: settings differ that change the weights.
        SettingError: more epochs are done than asked for.
        ValueError: there is no checkpoint, or it is damaged.
    """
    if not last.is_file():
        raise ValueError(f"nothing to resume: {last} does not exist")
    record = training_record(load_training_checkpoint(last), last)
    changes = config.differences(record.config)
    if changes:
        raise ResumeError(last.parent, changes)
    done = record.epoch + 1
    if config.optim.epochs < done:
        raise SettingError(
            "optim.epochs",
            f"must be at least the {done} that are done in {printable(last.parent)}, got "
            f"{config.optim.epochs}; omit it to go on as planned",
        )
    return record


def check_same_data(
    record: TrainingRecord,
    folder: Path,
    class_names: tuple[str, ...],
    clips: dict[str, int],
    digests: dict[str, str],
) -> None:
    """Refuses to go on with another data set, which a new path may lead to.

    Raises:
        ValueError: other classes, other numbers of clips, or other clips by name, label or order.
    """
    if class_names != record.class_names:
        raise ValueError(
            f"cannot resume {folder}: the data set has classes {', '.join(class_names)}, "
            f"the training was started with {', '.join(record.class_names)}"
        )
    if record.clips is not None and clips != record.clips:
        before, now = (
            f"{numbers.get('train', 0)} training and {numbers.get('validation', 0)} held-out clips"
            for numbers in (record.clips, clips)
        )
        raise ValueError(
            f"cannot resume {folder}: the data set has {now}, the training was started with {before}"
        )
    for part, kind in (("train", "training"), ("validation", "held-out")):
        if record.digests is not None and digests.get(part) != record.digests.get(part):
            raise ValueError(
                f"cannot resume {folder}: its {kind} clips were others, or the same in another order "
                "or with other labels; give the list that the training was started with"
            )
