"""The training step, the evaluation step and the optimiser."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from ifdd.data.transforms import BatchMix
from ifdd.losses import IFDDLoss, LossParts
from ifdd.training.config import TrainingConfig
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.training.seeds import derived_seed
from ifdd.training.windows import WindowBatch, mean_over_windows


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is one line."""


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint, for the kernels of this optimiser: the file may come from another device."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


class Recogniser(pl.LightningModule):
    """Trains and evaluates a network whose output has ``logits`` and ``lifting_residual``.

    Nothing random is carried from one step to the next: the generators are seeded anew from
    (seed, epoch, batch) before each step and the rate is a function of the epoch, so a training resumed from
    the checkpoint of an epoch's end takes the very steps of an uninterrupted one.

    Args:
        model: maps clips (B, 3, T, H, W) in [0, 1] to an :class:`ifdd.IFDDOutput`.
        config: the recipe.
        class_names: names in label order.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.class_names = tuple(class_names)
        optim = config.optim
        self.schedule = optim.schedule(config.data.batch_size)
        self.criterion = IFDDLoss(optim.lifting_weight, optim.lifting_reduction)
        self.mix = BatchMix(
            len(self.class_names),
            mixup_alpha=optim.mixup,
            cutmix_alpha=optim.cutmix,
            label_smoothing=optim.label_smoothing,
        )
        self.confusion = MulticlassConfusionMatrix(len(self.class_names))
        self.scores: Scores | None = None

    def forward(self, clips: Tensor) -> Any:
        """The network's output for clips (B, 3, T, H, W)."""
        return self.model(clips)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters, fused on a GPU; the rate is set before each step."""
        parameters = list(self.parameters())
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.schedule(0),
            weight_decay=self.config.optim.weight_decay,
            fused=True if self._may_fuse() and all(p.is_cuda for p in parameters) else None,
        )
        optimizer.register_load_state_dict_pre_hook(_keep_kernels)
        return optimizer

    def _may_fuse(self) -> bool:
        """Lightning refuses to clip gradients in mixed precision where the optimiser is fused."""
        return self.config.optim.gradient_clip is None or self.config.precision == "32"

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Seeds the generators and sets the rate of the epoch."""
        # Here rather than at the epoch's start: that hook is not called in the first epoch after a resume.
        pl.seed_everything(derived_seed(self.config.seed, self.current_epoch, batch_index), verbose=False)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.schedule(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of (clips, labels or soft labels)."""
        clips, labels = batch
        clips, targets = self.mix(clips, labels)
        output = self.model(clips)
        parts: LossParts = self.criterion(output, targets)
        size = len(labels)
        self.log(
            "train/loss", parts.total.detach(), on_step=False, on_epoch=True, batch_size=size, prog_bar=True
        )
        self.log(
            "train/classification",
            parts.classification.detach(),
            on_step=False,
            on_epoch=True,
            batch_size=size,
        )
        self.log("train/lifting", parts.lifting.detach(), on_step=False, on_epoch=True, batch_size=size)
        return parts.total

    def on_train_epoch_end(self) -> None:
        """Stops at a loss that is not a number, before anything is saved."""
        loss = float(self.trainer.callback_metrics["train/loss"])
        if not math.isfinite(loss):
            # Before the checkpoint callbacks, so that the last good checkpoint is kept.
            raise TrainingError(
                f"training loss became {loss} in epoch {self.current_epoch}; the last checkpoint is kept. "
                "Lower the learning rate, clip gradients or use 32-bit precision"
            )
        self.log("lr", self.schedule(self.current_epoch))

    def _evaluate(self, batch: WindowBatch) -> None:
        logits = mean_over_windows(self.model(batch.clips).logits.float(), batch.windows)
        if not torch.isfinite(logits).all():
            raise TrainingError("the network gave NaN or infinite logits while evaluating")
        self.confusion.update(logits.argmax(1), batch.labels)

    def validation_step(self, batch: WindowBatch, batch_index: int) -> None:
        """Counts one batch of held-out videos."""
        self._evaluate(batch)

    def test_step(self, batch: WindowBatch, batch_index: int) -> None:
        """Counts one batch of test videos."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """WAR and UAR of the held-out part."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """WAR and UAR of the test set."""
        self._score("test")

    def _score(self, stage: str) -> None:
        self.scores = scores_from_confusion(self.confusion.compute(), self.class_names)
        self.confusion.reset()
        self.log_dict({f"{stage}/war": self.scores.war, f"{stage}/uar": self.scores.uar}, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds settings, class list and scores, as plain types."""
        checkpoint["ifdd"] = {
            "config": self.config.to_dict(),
            "class_names": list(self.class_names),
            "validation": None if self.scores is None else {"war": self.scores.war, "uar": self.scores.uar},
        }
