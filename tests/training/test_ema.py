from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch

from ifdd.checkpoint import load_checkpoint
from ifdd.training.config import TrainingConfig
from ifdd.training.run import fit
from ifdd.training.storage import load_training_checkpoint

Make = Callable[..., TrainingConfig]


class Follow(pl.Callback):
    """Keeps the weights of every step, and those that were evaluated."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:  # type: ignore[no-untyped-def]
        self.steps.append(module.model.head.classifier.weight.detach().clone())

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_idx=0) -> None:  # type: ignore[no-untyped-def]
        self.evaluated.append(module.model.head.classifier.weight.detach().clone())


def test_the_average_is_evaluated_saved_and_exported(tiny_config: Make, tmp_path: Path) -> None:
    decay, follow = 0.7, Follow()
    result = fit(tiny_config(epochs=2, ema_decay=decay, select="last"), tmp_path, callbacks=(follow,))

    averages = [follow.steps[0]]
    for weight in follow.steps[1:]:
        averages.append(decay * averages[-1] + (1 - decay) * weight)
    assert not torch.allclose(averages[-1], follow.steps[-1]), "the test needs weights that move"
    last = load_training_checkpoint(tmp_path / "last.ckpt")
    name = "model.head.classifier.weight"
    torch.testing.assert_close(last["state_dict"][name], averages[-1])
    torch.testing.assert_close(last["current_model_state"][name], follow.steps[-1])
    torch.testing.assert_close(follow.evaluated[-1], averages[-1])
    torch.testing.assert_close(load_checkpoint(result.checkpoint).model.head.classifier.weight, averages[-1])
    source = load_training_checkpoint(tmp_path / "last.ckpt")["current_model_state"]
    for key, value in last["state_dict"].items():
        if not value.is_floating_point():
            assert torch.equal(value, source[key]), "integer buffers are copied, not averaged"
