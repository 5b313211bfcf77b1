"""Tiny networks as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CLASSES = ("Freude", "Ärger", "neutral")
TINY: dict[str, Any] = {
    "backbone": "mvit_nano",
    "embed_dim": 8,
    "depths": (1, 1, 1, 1),
    "image_size": 32,
    "clip_frames": 8,
    "split_pool": 2,
    "num_classes": len(CLASSES),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Checkpoint]:
    """A loaded checkpoint, whose file is tiny.safetensors."""

    def checkpoint(**overrides: Any) -> Checkpoint:
        model = IFDD(IFDDConfig(**{**TINY, **overrides}))
        with torch.no_grad():
            model.head.classifier.weight.normal_(std=3.0)
        path = tmp_path / "tiny.safetensors"
        save_checkpoint(path, model, CLASSES, {"stride": 2, "short": "repeat_each"})
        return load_checkpoint(path)

    return checkpoint


def clips_for(checkpoint: Checkpoint, batch: int) -> torch.Tensor:
    config = checkpoint.config
    return torch.rand(batch, 3, config.clip_frames, config.image_size, config.image_size)
