"""Batches of videos that have one or more windows each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ifdd._labels import check_labels
from ifdd.data.datasets import RawClip
from ifdd.data.resize import frames_to_clips
from ifdd.data.transforms import Augmentation, ClipAugment

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes the tensor that clips are joined in, of a shape and a dtype: in a worker, in shared memory."""


class WindowBatch(NamedTuple):
    """``clips`` (sum of windows, 3, T, H, W), ``labels`` (V,), ``windows`` (V,) windows of each video."""

    clips: Tensor
    labels: Tensor
    windows: Tensor


class RawClips(NamedTuple):
    """A training batch as it travels: ``frames`` uint8 (B, T, S, S, 3), ``labels`` (B,) or soft (B, K), and
    the augmentation drawn for each clip, None without any.
    """

    frames: Tensor
    labels: Tensor
    drawn: tuple[Augmentation, ...] | None


class RawWindows(NamedTuple):
    """A batch of a test as it travels: a :class:`WindowBatch` whose clips are uint8 frames
    (sum of windows, T, S, S, 3).
    """

    frames: Tensor
    labels: Tensor
    windows: Tensor


def own_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An :data:`Empty` in the memory of the process."""
    return torch.empty(shape, dtype=dtype)


def collate_clips(
    items: Sequence[RawClip | tuple[Tensor, Any]], classes: int, empty: Empty = own_memory
) -> RawClips | tuple[Tensor, Tensor]:
    """Joins training samples: raw ones to :class:`RawClips`, others to clips (B, 3, T, H, W) and labels.

    Raises:
        ValueError: a label outside 0..classes - 1. Here, since a training step on a GPU does not read labels.
    """
    # Not default_collate: in a worker it takes shared memory before anybody has looked whether there is
    # enough.
    clips = _joined([item[0].unsqueeze(0) for item in items], empty)
    given = [item[1] for item in items]
    labels = torch.stack(given) if isinstance(given[0], Tensor) else torch.tensor(given, dtype=torch.int64)
    if not labels.is_floating_point():
        check_labels(labels, classes)
    if not isinstance(items[0], RawClip):
        return clips, labels
    drawn = tuple(item.drawn for item in items if isinstance(item, RawClip) and item.drawn is not None)
    return RawClips(clips, labels, drawn or None)


def collate_windows(
    items: Sequence[RawClip | tuple[Tensor, int]], classes: int, empty: Empty = own_memory
) -> RawWindows | WindowBatch:
    """Joins samples of one window, (3, T, H, W) or raw (T, S, S, 3), or of W windows, with W in front.

    Raises:
        ValueError: a label outside 0..classes - 1.
    """
    labels = torch.tensor([int(item[1]) for item in items], dtype=torch.int64)
    check_labels(labels, classes)
    groups = [item[0] if item[0].ndim == 5 else item[0].unsqueeze(0) for item in items]
    kind = RawWindows if isinstance(items[0], RawClip) else WindowBatch
    windows = torch.tensor([len(group) for group in groups], dtype=torch.int64)
    return kind(_joined(groups, empty), labels, windows)


def _joined(groups: Sequence[Tensor], empty: Empty) -> Tensor:
    """The groups one after the other, each copied once."""
    clips = empty((sum(map(len, groups)), *groups[0].shape[1:]), groups[0].dtype)
    return torch.cat(list(groups), out=clips)


def finished(batch: Any, augment: ClipAugment | None) -> Any:
    """A raw batch converted and augmented on its device; another one as it is.

    Raises:
        ValueError: the batch has draws, but there is no augmentation that they belong to.
    """
    if isinstance(batch, RawWindows):
        return WindowBatch(frames_to_clips(batch.frames), batch.labels, batch.windows)
    if not isinstance(batch, RawClips):
        return batch
    if batch.drawn is None:
        return frames_to_clips(batch.frames), batch.labels
    if augment is None:
        raise ValueError("the clips of this batch have an augmentation, the training has none")
    return augment.apply(batch.frames, batch.drawn), batch.labels


def empty_windows() -> WindowBatch:
    """A batch of no video."""
    none = torch.empty(0, dtype=torch.int64)
    return WindowBatch(torch.empty(0, 3, 0, 0, 0), none, none)


def mean_over_windows(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean of each video's rows: logits (sum of windows, K), windows (V,) -> (V, K)."""
    return torch.stack([part.mean(0) for part in logits.split(windows.tolist())])
