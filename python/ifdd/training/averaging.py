"""The moving average of the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel


class MovingAverage(EMAWeightAveraging):
    """Lightning's moving average, without waiting for the device.

    PyTorch's ``AveragedModel`` keeps the number of updates on the device and reads it twice an update.
    Buffers are copied, not averaged: an average would round the integer index buffers.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts the average at the weights."""
        if stage == "fit":
            self._average_model = Average(pl_module, self.decay)


class Average(AveragedModel):
    """a <- decay a + (1 - decay) w, beginning with the weights w of the first update."""

    def __init__(self, model: pl.LightningModule, decay: float) -> None:
        super().__init__(model, device=model.device)
        self.decay = decay
        self.n_averaged = torch.zeros((), dtype=torch.long, device="cpu")

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        """Takes the weights of a step into the average, in a few launches for all of them."""
        averages: list[Any] = list(self.module.parameters())
        weights: list[Any] = list(model.parameters())
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        for copy, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            copy.copy_(buffer)
        self.n_averaged += 1
