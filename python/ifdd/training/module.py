"""The training step, the evaluation step and the optimiser."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from ifdd.config import IFDDConfig
from ifdd.data.transforms import BatchMix, ClipAugment
from ifdd.graphs import Captured, capture
from ifdd.losses import IFDDLoss, LossParts, WithLoss
from ifdd.training.config import TrainingConfig
from ifdd.training.data import sampling_policy
from ifdd.training.launch import ALONE, Launch
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.training.seeds import derived_seed
from ifdd.training.windows import WindowBatch, finished, mean_over_windows

CHECK_EVERY = 100
"""Steps after which the loss is read in the middle of an epoch; each reading waits for the GPU."""


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
        clips, digests: number of clips of each split, and which, for the checkpoints: a resumed training must
            find them again.
        launch: the processes that train together.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        class_names: tuple[str, ...],
        clips: dict[str, int] | None = None,
        digests: dict[str, str] | None = None,
        launch: Launch = ALONE,
    ) -> None:
        super().__init__()
        self.clips = clips
        self.digests = digests
        self.model = model
        self.config = config
        self.class_names = tuple(class_names)
        optim = config.optim
        self.schedule = optim.schedule(config.data.batch_size)
        # DDP takes the mean of the ranks' gradients, which makes a sum over clips smaller by their number.
        ranks = launch.world_size if optim.lifting_reduction == "sum" else 1
        self.launch = launch
        self.criterion = IFDDLoss(optim.lifting_weight * ranks, optim.lifting_reduction)
        self.mix = BatchMix(
            len(self.class_names),
            mixup_alpha=optim.mixup,
            cutmix_alpha=optim.cutmix,
            label_smoothing=optim.label_smoothing,
        )
        network = IFDDConfig.from_dict(config.model)
        self.augment = ClipAugment(network.image_size) if config.data.augment else None
        # Not whenever there is a process group: that of an earlier training may be left, without its ranks.
        self.confusion = MulticlassConfusionMatrix(
            len(self.class_names), sync_on_compute=launch.world_size > 1
        )
        self.scores: Scores | None = None
        self._loss_so_far: Tensor | None = None
        self._first_step = True
        self._captured: Captured | None = None

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
        """A fused optimiser divides by the loss scale of float16 itself: too late for clipping before it."""
        return self.config.optim.gradient_clip is None or self.config.precision != "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the norm of all gradients. Lightning refuses to where the optimiser is fused and precision is
        mixed, though bfloat16 has no loss scale.
        """
        if self.config.precision == "16-mixed":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Converts and augments frames on the device: they travel as bytes."""
        return finished(batch, self.augment)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Seeds the generators and sets the rate of the epoch."""
        # Here rather than at the epoch's start: that hook is not called in the first epoch after a resume.
        numbers = (self.config.seed, self.current_epoch, batch_index)
        # Each rank mixes its own clips: with the same numbers all would take the same shares and drop alike.
        rank = () if self.launch.is_first else (self.launch.rank,)
        pl.seed_everything(derived_seed(*numbers, *rank), verbose=False)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.schedule(self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of (clips, labels or soft labels)."""
        clips, labels = batch
        clips, targets = self.mix(clips, labels)
        parts = self._losses(clips, targets)
        for name, value, shown in (
            ("loss", parts.total, True),
            ("classification", parts.classification, False),
            ("lifting", parts.lifting, False),
        ):
            self.log(
                f"train/{name}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=len(labels),
                prog_bar=shown,
                sync_dist=self.launch.world_size > 1,
            )
        loss = parts.total.detach()
        # A sum is NaN or infinite from the first such loss on, and adding does not wait for the device.
        self._loss_so_far = (
            loss if batch_index == 0 or self._loss_so_far is None else self._loss_so_far + loss
        )
        if self._first_step or (batch_index + 1) % CHECK_EVERY == 0:
            self._check_loss()
        self._first_step = False
        return parts.total

    def _losses(self, clips: Tensor, targets: Tensor) -> LossParts:
        """The loss of a mixed batch, by CUDA graphs where the training has them."""
        parts: LossParts
        if not self.config.cuda_graph:
            parts = self.criterion(self.model(clips), targets)
            return parts
        if self._captured is None:
            # Kept by the graphs alone, so that the network has no second name in the checkpoints.
            self._captured = capture(WithLoss(self.model, self.criterion), clips, targets)
        parts = self._captured(clips, targets)
        return parts

    def on_fit_end(self) -> None:
        """Frees the graphs and their memory; the weights may now move."""
        self._captured = None

    def _check_loss(self) -> None:
        """Stops at a loss that is not a number."""
        if self._loss_so_far is not None and not math.isfinite(loss := float(self._loss_so_far)):
            raise self._diverged(f"the training loss became {loss}")

    def _diverged(self, what: str) -> TrainingError:
        """The error for a training whose numbers are lost: when, what is kept, what helps."""
        epoch, optim = self.current_epoch, self.config.optim
        when = f"in epoch {epoch + 1} of {optim.epochs}"
        if self._first_step:
            return TrainingError(
                f"{what} {when}, in the first step: the starting weights or the first clips already give no "
                "number; look at the clips, and at the file of --init if there is one"
            )
        kept = (
            f"the checkpoint of epoch {epoch} is kept" if epoch else "no epoch was over, so nothing is kept"
        )
        advice = [f"lower --learning_rate (now {optim.learning_rate:g})"]
        if optim.warmup == "none":
            advice.append("warm up (--warmup standard)")
        if optim.gradient_clip is None:
            advice.append("clip gradients (--gradient_clip 1)")
        if self.config.precision != "32":
            advice.append("train in 32 bits (--precision 32)")
        return TrainingError(f"{what} {when}; {kept}. What helps: {', '.join(advice)}")

    def on_train_epoch_end(self) -> None:
        """Stops at a loss or at weights that are not numbers, before anything is saved."""
        # Before the checkpoint callbacks, so that the last good checkpoint is kept.
        self._check_loss()
        # The last step may have spoiled the weights after its loss was computed.
        if not bool(torch.stack([p.detach().isfinite().all() for p in self.parameters()]).all()):
            raise self._diverged("the weights became NaN or infinite")
        self.log("lr", self.schedule(self.current_epoch))

    def on_validation_epoch_start(self) -> None:
        """Stops at a loss that is not a number, before clips are evaluated in vain."""
        self._check_loss()

    def _evaluate(self, batch: WindowBatch) -> None:
        """Counts the videos of a batch; without any collective, since ranks may have different numbers of
        batches.
        """
        if not len(batch.labels):
            return
        logits = mean_over_windows(self.model(batch.clips).logits.float(), batch.windows)
        if not torch.isfinite(logits).all():
            if self.trainer.testing:
                raise TrainingError(
                    "the network gave NaN or infinite logits while testing: its weights or the clips hold "
                    "such values"
                )
            raise self._diverged("the network gave NaN or infinite logits for held-out clips")
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
            "sampling": asdict(sampling_policy(self.config.data)),
            "clips": self.clips,
            "digests": self.digests,
        }
