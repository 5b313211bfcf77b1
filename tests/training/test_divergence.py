"""A training whose numbers are lost says when, what is kept and what helps, wherever it is noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from ifdd.training.config import TrainingConfig
from ifdd.training.module import CHECK_EVERY, Recogniser, TrainingError
from ifdd.training.run import fit
from ifdd.training.storage import load_training_checkpoint

Make = Callable[..., TrainingConfig]
ADVICE = (
    r"What helps: lower --learning_rate \(now 0\.003\), warm up \(--warmup standard\), "
    r"clip gradients \(--gradient_clip 1\)$"
)


class Poison(pl.Callback):
    """Spoils the weights before the first, or after the last step of an epoch."""

    def __init__(self, epoch: int, after: bool) -> None:
        self.epoch, self.after = epoch, after

    def _spoil(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            module.model.head.classifier.bias.data[2] = math.nan

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if not self.after:
            self._spoil(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.after and batch_idx + 1 == trainer.num_training_batches:
            self._spoil(trainer, pl_module)


FIRST = r"the training loss became nan in epoch 1 of 3, in the first step: the starting weights or "
EARLY = rf" in epoch 1 of 3; no epoch was over, so nothing is kept\. {ADVICE}"
LATER = rf" in epoch 2 of 3; the checkpoint of epoch 1 is kept\. {ADVICE}"


@pytest.mark.parametrize(
    ("validation", "epoch", "after", "text"),
    [
        (0.34, 0, False, FIRST),
        (0.34, 1, False, f"the training loss became nan{LATER}"),
        (0.34, 0, True, f"the network gave NaN or infinite logits for held-out clips{EARLY}"),
        (0.0, 0, True, f"the weights became NaN or infinite{EARLY}"),
        pytest.param(0.0, 0, False, FIRST, marks=pytest.mark.nightly),
        pytest.param(0.0, 1, False, f"the training loss became nan{LATER}", marks=pytest.mark.nightly),
        pytest.param(0.34, 1, True, LATER, marks=pytest.mark.nightly),
        pytest.param(0.0, 1, True, LATER, marks=pytest.mark.nightly),
    ],
)
def test_lost_numbers_are_one_line_with_epoch_and_advice(
    tiny_config: Make, tmp_path: Path, validation: float, epoch: int, after: bool, text: str
) -> None:
    config = tiny_config()
    config = replace(config, data=replace(config.data, validation=validation))
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=text) as error:
        fit(config, out, callbacks=(Poison(epoch, after),))
    assert "\n" not in str(error.value)
    assert out.exists() == (epoch == 1), "where nothing was trained no folder is left"
    if epoch:
        assert load_training_checkpoint(out / "last.ckpt")["epoch"] == 0


def test_advice_leaves_out_what_is_done_already(tiny_config: Make) -> None:
    config = replace(tiny_config(warmup="standard", gradient_clip=1.0), precision="16-mixed")
    module = Recogniser.__new__(Recogniser)
    pl.LightningModule.__init__(module)
    module.config, module._first_step = config, False
    message = str(module._diverged("the loss became nan"))
    assert message.endswith(
        "What helps: lower --learning_rate (now 0.003), train in 32 bits (--precision 32)"
    )


def test_the_loss_is_read_in_the_first_step_and_then_seldom(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading waits for the device."""
    monkeypatch.setattr("ifdd.training.module.CHECK_EVERY", 4)
    config = tiny_config(epochs=1)
    data = replace(config.data, train_size=9, batch_size=1, validation=0.0)
    read: list[int] = []

    class Count(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module._check_loss = lambda: read.append(trainer.fit_loop.batch_idx)

    fit(replace(config, data=data), tmp_path / "run", callbacks=(Count(),))
    assert read == [0, 3, 7, 8], "and at the end of the epoch"
    assert CHECK_EVERY >= 50
