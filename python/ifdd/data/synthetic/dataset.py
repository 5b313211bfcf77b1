"""Synthetic facial expressions in the wild, rendered on the fly."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .face import Identity, make_identity
from .motion import EXPRESSIONS, Difficulty, Floats, Performance, perform
from .renderer import add_noise, render

IDENTITY_NUMBERS: dict[str, range] = {
    "train": range(1 << 20),
    "test": range(1 << 20, (1 << 20) + (1 << 16)),
}
"""Numbers of the people of each split. They do not overlap, so nobody appears in both."""


class ClipTruth(NamedTuple):
    """The facts from which a clip was drawn."""

    #: Index into `EXPRESSIONS`.
    label: int
    #: Number of the person.
    identity: int
    #: (T,) float32 in [0, 1]: strength of the expression; all zero for Neutral.
    intensity: Tensor
    #: Frame of the greatest intensity; None for Neutral.
    apex: int | None


class SyntheticExpressions(Dataset[tuple[Tensor, int]]):
    """Clips of drawn faces that show one of seven expressions among neutral frames and distractions.

    An item is (clip, label): clip float32 (3, T, S, S), RGB in [0, 1]; label in 0..6, into `class_names`.
    Item i has label i mod 7, so classes are balanced to within one clip. Everything is drawn from
    (split, seed, epoch, index) and nothing else: equal on every machine, in any worker, in any order.

    Anybody's neutral face may resemble some emotion (Difficulty.resting_resemblance), so what tells is the
    change against a person's own neutral face, and only a part of the frames shows it.

    Args:
        split: "train" or "test". Their people are disjoint. `set_epoch` does not change the test set.
        size: number of clips in an epoch.
        clip_frames: T, at least 2. The event is the same for any T; only its sampling in time changes.
        image_size: S, at least 16 pixels.
        seed: of the clips (people are the same under every seed).
        difficulty: the knobs; see `Difficulty`.

    Raises:
        ValueError: an argument is out of range.
    """

    class_names: tuple[str, ...] = tuple(expression.name for expression in EXPRESSIONS)

    def __init__(
        self,
        split: Literal["train", "test"] = "train",
        size: int = 1400,
        clip_frames: int = 16,
        image_size: int = 64,
        seed: int = 0,
        difficulty: Difficulty | None = None,
    ) -> None:
        if split not in IDENTITY_NUMBERS:
            raise ValueError(
                f"SyntheticExpressions: split must be one of {sorted(IDENTITY_NUMBERS)}, got {split!r}"
            )
        limits = {
            "size": (size, 1),
            "clip_frames": (clip_frames, 2),
            "image_size": (image_size, 16),
            "seed": (seed, 0),
        }
        for name, (value, least) in limits.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"SyntheticExpressions: {name} must be an integer >= {least}, got {value!r}")
        self.split = split
        self.size = size
        self.clip_frames = clip_frames
        self.image_size = image_size
        self.seed = seed
        self.difficulty = difficulty if difficulty is not None else Difficulty()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draws new training clips: the content of the train split depends on `epoch` (>= 0).

        Raises:
            ValueError: a negative `epoch`.
        """
        if epoch < 0:
            raise ValueError(f"SyntheticExpressions.set_epoch: epoch must be >= 0, got {epoch}")
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def _draw(self, index: int) -> tuple[int, int, Identity, Performance, np.random.Generator]:
        if not -self.size <= index < self.size:
            raise IndexError(f"SyntheticExpressions: index {index} is out of range for {self.size} clips")
        index %= self.size
        test = self.split == "test"
        rng = np.random.default_rng((self.seed, int(test), 0 if test else self.epoch, index))
        people = IDENTITY_NUMBERS[self.split]
        number = people[int(rng.integers(len(people)))]
        label = index % len(EXPRESSIONS)
        identity = make_identity(number)
        resting = identity.resting_units * np.float32(
            identity.resting_share * self.difficulty.resting_resemblance
        )
        play = perform(rng, label, resting, identity.skin, self.clip_frames, self.difficulty)
        return label, number, identity, play, rng

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label, _, identity, play, rng = self._draw(index)
        image = render(identity, play, self.image_size)
        add_noise(image, rng, self.difficulty.noise)
        return torch.from_numpy(image), label

    def truth(self, index: int) -> ClipTruth:
        """The content of clip `index`, without rendering it."""
        label, number, _, play, _ = self._draw(index)
        intensity: Floats = play.intensity
        apex = int(intensity.argmax()) if intensity.any() else None
        return ClipTruth(label, number, torch.from_numpy(intensity), apex)
