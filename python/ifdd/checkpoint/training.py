"""Reads this package's own training checkpoints (``last.ckpt``, ``best.ckpt``).

The trainer's state lies beside them in the file; to predict, test or start from them only weights, settings
and class names are needed, and none of the training machinery.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ifdd.config import IFDDConfig
from ifdd.training.config import TrainingConfig


@dataclass(frozen=True)
class TrainingRecord:
    """Settings, classes and scores of a training at the end of an epoch (from 0)."""

    config: TrainingConfig
    class_names: tuple[str, ...]
    epoch: int
    validation: dict[str, float] | None
    sampling: dict[str, Any]
    clips: dict[str, int] | None
    digests: dict[str, str] | None

    @classmethod
    def of(cls, record: dict[str, Any]) -> TrainingRecord:
        """From the plain types in the file.

        Raises:
            KeyError, TypeError, ValueError: the record is incomplete or holds impossible settings.
        """
        config = TrainingConfig.from_dict(record["config"])
        sampling = record.get("sampling")
        if sampling is None:
            # Written before the record held it; the data sets know, at the cost of importing their readers.
            from ifdd.training.data import sampling_policy

            sampling = asdict(sampling_policy(config.data))
        return cls(
            config=config,
            class_names=tuple(record["class_names"]),
            epoch=int(record["epoch"]),
            validation=record.get("validation"),
            sampling=dict(sampling),
            clips=record.get("clips"),
            digests=record.get("digests"),
        )

    @property
    def network(self) -> IFDDConfig:
        """The network that the weights fill."""
        return IFDDConfig.from_dict({**self.config.model, "num_classes": len(self.class_names)})

    @property
    def origin(self) -> str:
        """Which weights these are: ``moving average of the weights, epoch 3 of 40``."""
        averaged = self.config.optim.ema_decay is not None
        weights = "moving average of the weights" if averaged else "weights"
        return f"{weights}, epoch {self.epoch + 1} of {self.config.optim.epochs}"

    def extra(self) -> dict[str, Any]:
        """The record of the training in an exported checkpoint."""
        data = self.config.data
        return {
            "dataset": data.name,
            "fold": data.fold,
            **self.sampling,
            "crop": data.crop,
            "epoch": self.epoch,
            "validation": self.validation,
            "weights": self.origin,
        }
