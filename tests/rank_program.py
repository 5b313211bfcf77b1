"""One rank of a training: `python rank_program.py FOLDER WHAT`, with the variables that torchrun sets.

WHAT is train, kill, again or test.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ifdd.checkpoint import load_checkpoint
from ifdd.cli.common import leave_ranks
from ifdd.training.config import DataConfig, OptimConfig, TrainingConfig
from ifdd.training.run import evaluate, fit
from ifdd.training.watch import ReportedError

TINY: dict[str, Any] = {
    "backbone": "mvit_nano",
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "image_size": 32,
    "clip_frames": 8,
    "split_pool": 2,
}
NETWORK: dict[str, Any] = {**TINY, "dropout": 0.0, "drop_path": 0.0}


def config() -> TrainingConfig:
    """Twenty steps of four clips, all of them the same for any number of ranks."""
    data = DataConfig(
        train_size=20, test_size=13, validation=0.25, batch_size=4, eval_batch_size=2, workers=0
    )
    optim = OptimConfig(epochs=4, learning_rate=3e-3, warmup="none", mixup=0.0, cutmix=0.0, ema_decay=0.9)
    return TrainingConfig(data=data, optim=optim, model=NETWORK, device="cpu", seed=3)


class Weights(pl.Callback):
    """Saves the weights of every rank at the end; trains in float64 if so asked."""

    def __init__(self, file: Path, double: bool = False) -> None:
        self.file = file
        self.double = double

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.double:
            pl_module.double()
            pl_module.model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        weights = {name: value.detach().clone() for name, value in pl_module.model.state_dict().items()}
        torch.save(weights, self.file.with_suffix(f".{trainer.global_rank}.pt"))


class Killed(pl.Callback):
    """The second rank dies in the second epoch."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path) -> None:
    """In float32, ended once and gone on with, and in float64; then a test."""
    single, double = folder / "single", folder / "double"
    assert fit(config(), single, limit_steps=7).limit == "--limit_steps 7"
    fit(config(), single, resume=True, callbacks=(Weights(folder / "single"),))
    last = replace(config(), optim=replace(config().optim, select="last", ema_decay=None))
    fit(last, double, callbacks=(Weights(folder / "double", double=True),))
    test(folder)


def test(folder: Path) -> None:
    """Scores of the float32 training's weights, as each rank sees them."""
    scores = evaluate(load_checkpoint(folder / "single" / "model.safetensors"), config())
    torch.save(scores.to_dict(), folder / f"scores.{os.environ['RANK']}.pt")


def kill(folder: Path) -> None:
    """A training whose second rank dies."""
    fit(config(), folder / "killed", callbacks=(Killed(),))


def again(folder: Path) -> None:
    """The same one gone on with, and one without a break."""
    fit(config(), folder / "again", resume=True)
    fit(config(), folder / "unbroken")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        {"train": train, "kill": kill, "again": again, "test": test}[sys.argv[2]](Path(sys.argv[1]))
    except ReportedError:
        leave_ranks()
