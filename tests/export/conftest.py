"""Tiny networks as checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ifdd.modules.backbone import MultiscaleBlock

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


class PooledLinear(nn.Module):
    """From and to the grid and width of a block of the backbone: a block takes long to trace."""

    def __init__(self, block: MultiscaleBlock) -> None:
        super().__init__()
        self.grid, self.out_grid, self.stride = block.grid, block.out_grid, block.stride_q
        self.linear = nn.Linear(block.in_channels, block.attention.channels)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
        cells = tokens[:, 1:].unflatten(1, self.grid)
        kept = cells[:, :: self.stride[0], :: self.stride[1], :: self.stride[2]].flatten(1, 3)
        return self.linear(torch.cat((tokens[:, :1], kept), 1)), self.out_grid


def thin(checkpoint: Checkpoint) -> Checkpoint:
    """With one block of the backbone, the last: it has all ops that blocks have."""
    blocks = checkpoint.model.backbone.blocks
    for place in range(len(blocks) - 1):
        blocks[place] = PooledLinear(blocks[place])
    checkpoint.model.eval()
    return checkpoint
