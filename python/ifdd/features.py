"""Embedding and backbone alone, as other networks take them: a map for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ifdd.config import EMBEDDED_FRAMES, STAGE_COUNT
from ifdd.model import IFDD


@dataclass(frozen=True)
class FeatureInfo:
    """One of the maps: its channels, by how much it is smaller than the clip, and the block it comes from."""

    index: int
    num_chs: int
    #: Of height and width.
    reduction: int
    #: Of the frames.
    frame_reduction: int
    module: str


class FeatureInfos(tuple[FeatureInfo, ...]):
    """Those of all maps, in the order in which they are returned."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [info.num_chs for info in self]

    def reduction(self) -> list[int]:
        """By how much height and width of each map are smaller than those of the clip."""
        return [info.reduction for info in self]

    def module_name(self) -> list[str]:
        """The block whose output each map is."""
        return [info.module for info in self]


class FeatureExtractor(nn.Module):
    """The maps of the backbone's stages. Parts and state-dict names are those of `ifdd.IFDD`.

    Blocks behind the last stage that is asked for are left out, and with them the last stage's norm.

    Args:
        model: an `ifdd.IFDD`, whose embedding and backbone become this module's.
        out_indices: the stages, ascending; from 0 to 3, or from -4 to -1.

    Attributes:
        feature_info: channels and reduction of each map.

    Raises:
        ValueError: no such stages.
    """

    def __init__(self, model: IFDD, out_indices: Sequence[int] = range(STAGE_COUNT)) -> None:
        super().__init__()
        self.config = model.config
        self.out_indices = _stages(out_indices)
        self.embedding, self.backbone = model.embedding, model.backbone
        last = self.out_indices[-1]
        if last < STAGE_COUNT - 1:
            self.backbone.blocks = self.backbone.blocks[: self.backbone.stage_ends[last] + 1]
            self.backbone.norm = nn.Identity()  # type: ignore[assignment]
        config = self.config
        self.feature_info = FeatureInfos(
            FeatureInfo(
                stage,
                config.stage_channels[stage],
                config.image_size // self.backbone.stage_grids[stage][1],
                config.clip_frames // EMBEDDED_FRAMES,
                f"backbone.blocks.{self.backbone.stage_ends[stage]}",
            )
            for stage in self.out_indices
        )

    def forward(self, clips: torch.Tensor) -> list[torch.Tensor]:
        """Clips (B, 3, T_in, S, S) -> (B, C, T, H, W) for each of `out_indices`, class tokens left out.

        Raises:
            ValueError: clips of another rank, size or type than the configuration says.
        """
        IFDD._check(self, clips)  # type: ignore[arg-type]
        tokens = self.embedding(clips).flatten(2).transpose(1, 2)
        stages = self.backbone(tokens, self.out_indices)
        return [
            found.tokens[:, 1:].transpose(1, 2).unflatten(2, found.grid)
            for found in (stages[stage] for stage in self.out_indices)
        ]


def _stages(asked: Sequence[int]) -> tuple[int, ...]:
    numbers = [stage for stage in asked if isinstance(stage, int) and -STAGE_COUNT <= stage < STAGE_COUNT]
    found = [stage % STAGE_COUNT for stage in numbers]
    if not found or len(numbers) != len(asked) or found != sorted(set(found)):
        raise ValueError(
            f"out_indices must be ascending stages from 0 to {STAGE_COUNT - 1} (or from -{STAGE_COUNT} to "
            f"-1); got {asked!r}"
        )
    return tuple(found)
