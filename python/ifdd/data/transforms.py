"""Augmentation of clips and mixing of batches; every draw comes from the `torch.Generator`
that is passed, or from torch's global one without it.

Recipe of the IFDD paper (Wang & Chai, AAAI 2025, arXiv:2412.13168) and its public implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ifdd._labels import check_labels
from ifdd_kernels import augment_clips, reference


class Augmentation(NamedTuple):
    """The random numbers of `ClipAugment` for one clip; they travel with it to the place of augmentation.

    ``flip`` comes first, then the crop (``top``, ``left``, ``height``, ``width``) is resized, then ``steps``
    are taken in order: 0 brightness, 1 contrast, 2 saturation, 3 hue, with their ``strengths`` by number
    (factors; the shift of hue in turns). No steps: the colours stay.
    """

    flip: bool
    top: int
    left: int
    height: int
    width: int
    strengths: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClipAugment:
    """Flip, random resized crop and colour jitter, with one draw for all frames of a clip.

    Args:
        size: side S of the result.
        flip: probability of the horizontal flip.
        scale: range of the area of the crop, as a part of the frame's.
        ratio: range of its width / height, drawn evenly on a logarithmic scale. If ten draws do not fit into
            the frame, the largest centred crop within the range is taken.
        brightness, contrast, saturation: factors are drawn from [max(0, 1 - v), 1 + v].
        hue: the shift is drawn from [-v, v], in turns of the colour circle, v <= 0.5.

    Brightness multiplies, contrast blends with the mean luma of each frame, saturation with the luma of each
    pixel, in random order with the shift of hue; the result of each is clamped to [0, 1]. These are
    torchvision's definitions, computed by `ifdd_kernels.augment_clips`.

    Raises:
        ValueError: a range that is empty or outside its limits.
    """

    size: int = 224
    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4

    def __post_init__(self) -> None:
        _check(self.size >= 1, "size", "at least 1", self.size)
        _check(0 <= self.flip <= 1, "flip", "in [0, 1]", self.flip)
        _check(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "an ascending pair in (0, 1]", self.scale)
        _check(
            0 < self.ratio[0] <= self.ratio[1], "ratio", "an ascending pair of positive numbers", self.ratio
        )
        for name in ("brightness", "contrast", "saturation"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _check(0 <= self.hue <= 0.5, "hue", "in [0, 0.5]", self.hue)

    def __call__(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augments one clip.

        Args:
            clip: floating point (3, T, H, W) in [0, 1].
            generator: on the CPU; the result is a function of the clip and its state. None: the global one.

        Returns:
            (3, T, S, S) in [0, 1], contiguous, dtype of the clip.
        """
        if clip.ndim != 4 or clip.shape[0] != 3 or not clip.is_floating_point():
            raise ValueError(
                f"clip must be floating point (3, T, H, W), got {clip.dtype} {tuple(clip.shape)}"
            )
        # The op takes bytes; its definition takes what they stand for.
        pixels = clip.permute(1, 2, 3, 0)[None]
        drawn = self.draw(pixels.shape[2], pixels.shape[3], generator)
        wide = torch.float64 if clip.dtype == torch.float64 else torch.float32
        result = reference.augment_pixels(pixels.to(wide), *_tensors([drawn], wide, clip.device), self.size)
        return result[0].to(clip.dtype).contiguous()

    def draw(self, height: int, width: int, generator: torch.Generator | None = None) -> Augmentation:
        """Draws for a clip of frames of height x width; :meth:`apply` does it."""
        flip = _uniform(0, 1, generator) < self.flip
        box = self.crop_box(height, width, generator)
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            return Augmentation(flip, *box)
        strengths = (
            self._factor(self.brightness, generator),
            self._factor(self.contrast, generator),
            self._factor(self.saturation, generator),
            _uniform(-self.hue, self.hue, generator),
        )
        return Augmentation(flip, *box, strengths, tuple(torch.randperm(4, generator=generator).tolist()))

    def apply(
        self, frames: Tensor, drawn: Sequence[Augmentation], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Augments a batch as it was drawn, on the device of the frames.

        Args:
            frames: uint8 (B, T, H, W, 3).
            drawn: one for each clip.
            dtype: floating point, of the result; the arithmetic is at least in float32.

        Returns:
            (B, 3, T, S, S) in [0, 1], contiguous; what calling this on each clip / 255 gives, up to rounding.

        Raises:
            ValueError: frames of another shape or type, not as many draws as clips, or a crop that is not
                inside the frames.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(
                f"frames must be uint8 (B, T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}"
            )
        if len(drawn) != len(frames):
            raise ValueError(f"drawn must have one entry per clip, got {len(drawn)} for {len(frames)} clips")
        for number, one in enumerate(drawn):
            if one.top + one.height > frames.shape[2] or one.left + one.width > frames.shape[3]:
                raise ValueError(
                    f"drawn: the crop of clip {number} is not inside its frames of"
                    f" {frames.shape[2]} x {frames.shape[3]}: {one}"
                )
        return augment_clips(frames, *_tensors(drawn, dtype, frames.device), self.size)

    def crop_box(
        self, height: int, width: int, generator: torch.Generator | None
    ) -> tuple[int, int, int, int]:
        """Draws (top, left, height, width) of the crop in a frame of height x width."""
        for _ in range(10):
            area = height * width * _uniform(*self.scale, generator)
            ratio = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), generator))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return _integer(height - h, generator), _integer(width - w, generator), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w

    @staticmethod
    def _factor(strength: float, generator: torch.Generator | None) -> float:
        return _uniform(max(0.0, 1 - strength), 1 + strength, generator)


@dataclass(frozen=True)
class BatchMix:
    """MixUp or CutMix of a whole batch with its reversed self, and label smoothing.

    Clip b is mixed with clip B-1-b, all with the same share: MixUp x_b <- lam x_b + (1 - lam) x_{B-1-b}, lam
    from Beta(alpha, alpha); CutMix puts a box of x_{B-1-b}, the same in all frames, into x_b, its sides
    sqrt(1 - lam) of the frame's, its centre anywhere, cut at the border, and lam becomes the part that is
    left. The targets are mixed alike. In an odd batch the middle clip meets itself, as does the only clip of
    a batch of one: they stay as they are, with their own (smoothed) target.

    Args:
        num_classes: K.
        mixup_alpha, cutmix_alpha: parameters of the Beta distributions; 0 switches that kind off, and with
            both 0 only labels are smoothed.
        switch_prob: probability of CutMix where both are on.
        label_smoothing: s; the target is 1 - s + s/K for the class and s/K for the others.

    Raises:
        ValueError: a number outside its range.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        _check(self.num_classes >= 1, "num_classes", "at least 1", self.num_classes)
        _check(self.mixup_alpha >= 0, "mixup_alpha", "at least 0", self.mixup_alpha)
        _check(self.cutmix_alpha >= 0, "cutmix_alpha", "at least 0", self.cutmix_alpha)
        _check(0 <= self.switch_prob <= 1, "switch_prob", "in [0, 1]", self.switch_prob)
        _check(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)

    def __call__(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            clips: floating point (B, 3, T, H, W); left unchanged.
            labels: int64 (B,), or soft labels (B, K) whose rows sum to 1.
            generator: on the CPU. None: the global one.

        Returns:
            mixed clips, like `clips`, and targets (B, K) float32 whose rows sum to 1.

        Raises:
            ValueError: shapes that do not belong together, or a label outside 0..K-1 (on a GPU: an
                assertion of the device).
        """
        if clips.ndim != 5 or not clips.is_floating_point():
            raise ValueError(
                f"clips must be floating point (B, 3, T, H, W), got {clips.dtype} {tuple(clips.shape)}"
            )
        targets = self.targets(labels)
        if len(targets) != len(clips):
            raise ValueError(f"labels must have one row per clip, got {len(targets)} for {len(clips)} clips")
        # Always the same draws, so that what follows from the generator does not depend on the settings.
        cut = _uniform(0, 1, generator) < self.switch_prob
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if not self.mixup_alpha and not self.cutmix_alpha:
            return clips, targets
        if not self.mixup_alpha or (cut and self.cutmix_alpha):
            share = float(numbers.beta(self.cutmix_alpha, self.cutmix_alpha))
            clips, share = _cut_mix(clips, share, numbers)
        else:
            share = float(numbers.beta(self.mixup_alpha, self.mixup_alpha))
            clips = torch.lerp(clips.flip(0), clips, share)
        return clips, torch.lerp(targets.flip(0), targets, share)

    def targets(self, labels: Tensor) -> Tensor:
        """Smoothed targets (B, K) float32 of labels (B,) or soft labels (B, K)."""
        if labels.ndim == 1 and not labels.is_floating_point():
            check_labels(labels, self.num_classes)
            spread = self.label_smoothing / self.num_classes
            others = torch.full((len(labels), self.num_classes), spread, device=labels.device)
            return others.scatter_(1, labels.long().unsqueeze(1), 1 - self.label_smoothing + spread)
        if labels.ndim == 2 and labels.is_floating_point() and labels.shape[1] == self.num_classes:
            return (1 - self.label_smoothing) * labels.float() + self.label_smoothing / self.num_classes
        raise ValueError(
            f"labels must be int64 (B,) or floating point (B, {self.num_classes}), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )


def _cut_mix(clips: Tensor, share: float, numbers: np.random.Generator) -> tuple[Tensor, float]:
    height, width = clips.shape[-2:]
    side = math.sqrt(1 - share)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = int(numbers.integers(height)), int(numbers.integers(width))
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    mixed = clips.clone()
    mixed[..., top:bottom, left:right] = clips.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _tensors(
    drawn: Sequence[Augmentation], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crops, flips, strengths and steps as `ifdd_kernels.augment_clips` takes them."""

    def sent(values: Sequence[Any], dtype: torch.dtype, *shape: int) -> Tensor:
        tensor = torch.tensor(values, dtype=dtype).reshape(len(drawn), *shape)
        # A copy that the host does not wait for.
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return (
        sent([one[1:5] for one in drawn], torch.int64, 4),
        sent([one.flip for one in drawn], torch.bool),
        sent([one.strengths or (1, 1, 1, 0) for one in drawn], dtype, 4),
        sent([one.steps or (-1, -1, -1, -1) for one in drawn], torch.int64, 4),
    )


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _integer(largest: int, generator: torch.Generator | None) -> int:
    """0..largest, evenly."""
    return int(torch.randint(largest + 1, (), generator=generator))


def _check(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value!r}")
