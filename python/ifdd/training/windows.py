"""Batches of videos that have one or more windows each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ifdd._labels import check_labels


class WindowBatch(NamedTuple):
    """``clips`` (sum of windows, 3, T, H, W), ``labels`` (V,), ``windows`` (V,) windows of each video."""

    clips: Tensor
    labels: Tensor
    windows: Tensor


def collate_clips(items: Sequence[tuple[Tensor, Any]], classes: int) -> tuple[Tensor, Tensor]:
    """Joins training samples: clips (B, 3, T, H, W), labels (B,) or soft labels (B, K).

    Raises:
        ValueError: a label outside 0..classes - 1. Here, since a training step on a GPU does not read labels.
    """
    # Not default_collate: in a worker it takes shared memory before anybody has looked whether there is
    # enough.
    clips = torch.stack([clip for clip, _ in items])
    given = [label for _, label in items]
    labels = torch.stack(given) if isinstance(given[0], Tensor) else torch.tensor(given, dtype=torch.int64)
    if not labels.is_floating_point():
        check_labels(labels, classes)
    return clips, labels


def collate_windows(items: Sequence[tuple[Tensor, int]], classes: int) -> WindowBatch:
    """Joins samples whose clip is (3, T, H, W), one window, or (W, 3, T, H, W), W windows.

    Raises:
        ValueError: a label outside 0..classes - 1.
    """
    labels = torch.tensor([int(label) for _, label in items], dtype=torch.int64)
    check_labels(labels, classes)
    groups = [clip if clip.ndim == 5 else clip.unsqueeze(0) for clip, _ in items]
    return WindowBatch(
        torch.cat(groups),
        labels,
        torch.tensor([len(group) for group in groups], dtype=torch.int64),
    )


def mean_over_windows(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean of each video's rows: logits (sum of windows, K), windows (V,) -> (V, K)."""
    return torch.stack([part.mean(0) for part in logits.split(windows.tolist())])
