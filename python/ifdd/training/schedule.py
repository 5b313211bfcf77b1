"""Learning rate of each epoch.

Source: recipe of Wang & Chai, "Lifting Scheme-Based Implicit Disentanglement of Emotion-Related Facial
Dynamics in the Wild", AAAI 2025, arXiv:2412.13168, and its public implementation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Warmup = Literal["original", "standard", "none"]

REFERENCE_BATCH = 32
"""The batch at which ``learning_rate`` holds as it is written; other batches scale it linearly."""

ORIGINAL_WARMUP_PEAK = 9.80e-5
"""Target of the original's warm-up for any base rate: its cosine at 1e-4, read at epoch 10."""


@dataclass(frozen=True)
class Schedule:
    """The rate as a pure function of the epoch e = 0, 1, ..., so that a resumed training needs no state.

    With w = ``warmup_epochs`` and E = ``epochs``::

        e < w:  start + e (peak - start) / w      peak = 9.80e-5 ("original") or the base rate ("standard")
        e >= w: end + (base - end) (1 + cos(pi (e - w) / (E - w))) / 2,    end = final_fraction * base

    ``"original"`` keeps a quirk of the published recipe: its warm-up ignores the base rate, so a small batch
    ends the warm-up above its base rate and then drops to it. ``"none"`` starts with the cosine.

    Args:
        base: the rate after warm-up, already scaled to the batch (see :func:`scaled_rate`).
        epochs: number of epochs E.
        warmup_epochs: w; at E or above the cosine is never reached.
        warmup: ``"original"``, ``"standard"`` or ``"none"``.
        start: rate of epoch 0 when there is a warm-up.
        final_fraction: the cosine ends at this fraction of the base rate.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    base: float
    epochs: int = 100
    warmup_epochs: int = 10
    warmup: Warmup = "original"
    start: float = 1e-6
    final_fraction: float = 0.01

    def __post_init__(self) -> None:
        if self.warmup not in get_args(Warmup):
            raise ValueError(f"warmup must be one of {get_args(Warmup)}, got {self.warmup!r}")
        if not (math.isfinite(self.base) and self.base > 0):
            raise ValueError(f"learning rate must be positive, got {self.base}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {self.warmup_epochs}")

    def __call__(self, epoch: int) -> float:
        """Rate of epoch ``epoch`` (from 0)."""
        warmup_epochs = 0 if self.warmup == "none" else self.warmup_epochs
        if epoch < warmup_epochs:
            peak = ORIGINAL_WARMUP_PEAK if self.warmup == "original" else self.base
            return self.start + epoch * (peak - self.start) / warmup_epochs
        end = self.final_fraction * self.base
        progress = (epoch - warmup_epochs) / max(self.epochs - warmup_epochs, 1)
        return end + (self.base - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def scaled_rate(learning_rate: float, batch_size: int) -> float:
    """``learning_rate * batch_size / 32``: the recipe's linear scaling (1e-4 at 32, 5e-5 at 16)."""
    return learning_rate * batch_size / REFERENCE_BATCH
