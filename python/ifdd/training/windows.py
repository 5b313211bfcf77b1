"""Batches of videos that have one or more windows each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class WindowBatch(NamedTuple):
    """``clips`` (sum of windows, 3, T, H, W), ``labels`` (V,), ``windows`` (V,) windows of each video."""

    clips: Tensor
    labels: Tensor
    windows: Tensor


def collate_windows(items: Sequence[tuple[Tensor, int]]) -> WindowBatch:
    """Joins samples whose clip is (3, T, H, W), one window, or (W, 3, T, H, W), W windows."""
    groups = [clip if clip.ndim == 5 else clip.unsqueeze(0) for clip, _ in items]
    return WindowBatch(
        torch.cat(groups),
        torch.tensor([int(label) for _, label in items], dtype=torch.int64),
        torch.tensor([len(group) for group in groups], dtype=torch.int64),
    )


def mean_over_windows(logits: Tensor, windows: Tensor) -> Tensor:
    """Mean of each video's rows: logits (sum of windows, K), windows (V,) -> (V, K)."""
    return torch.stack([part.mean(0) for part in logits.split(windows.tolist())])
