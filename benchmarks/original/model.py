"""The whole network: embedding, backbone, pyramid, split and lifting, head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.original.backbone import Grid, MultiscaleBackbone
from benchmarks.original.embedding import ConvEmbedding, S3DEmbedding
from benchmarks.original.lifting import LADM, ConvLifting, NoLifting
from benchmarks.original.split import make_split


class OriginalOutput(NamedTuple):
    """logits (B, classes), lifting_residual (B, H, W) and dynamic (B, C)."""

    logits: Tensor
    lifting_residual: Tensor
    dynamic: Tensor


class PyramidLifting(nn.Module):
    """Backbone, aggregation of the chosen stages at the size of the last, and lifting on the result.

    Input (B, C, T, H, W) from the embedding; returns the lifting residual and the dynamic feature.
    """

    def __init__(self, backbone: MultiscaleBackbone, stages: Sequence[int], lifting: nn.Module) -> None:
        super().__init__()
        last = len(backbone.grids) - 1
        if list(stages) != sorted(set(stages)) or not stages or stages[-1] != last or stages[0] < 0:
            raise ValueError(f"stages: expected ascending stages that end with {last}, got {tuple(stages)}")
        self.stages = tuple(stages)
        self.backbone = backbone
        if len(stages) > 1:
            self.PANLayer = nn.ModuleList(self._reduce(backbone, stage) for stage in stages[:-1])
            total = sum(backbone.channels[stage] for stage in stages)
            self.CatConv = nn.Conv2d(total, backbone.channels[last], kernel_size=1, bias=False)
        self.WaveLifts = lifting

    @staticmethod
    def _reduce(backbone: MultiscaleBackbone, stage: int) -> nn.Conv2d:
        height, width = backbone.grids[stage][1:]
        last_height, last_width = backbone.grids[-1][1:]
        if height % last_height or width % last_width:
            raise ValueError(
                f"stages: stage {stage} is {height}x{width}, no multiple of {last_height}x{last_width}"
            )
        ratio = (height // last_height, width // last_width)
        channels = backbone.channels[stage]
        return nn.Conv2d(channels, channels, 3, stride=ratio, padding=ratio, dilation=ratio, bias=False)

    @staticmethod
    def _images(tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens without the class token as images (B*T, C, H, W)."""
        batch, _, channels = tokens.shape
        frames = tokens[:, 1:].reshape(batch * grid[0], grid[1], grid[2], channels)
        return frames.permute(0, 3, 1, 2).contiguous()

    def tokens(self, x: Tensor) -> Tensor:
        """Aggregated tokens (B, T*H*W, C)."""
        stages = self.backbone(x)
        last, _ = stages[-1]
        if len(self.stages) == 1:
            return last[:, 1:]
        maps = [
            conv(self._images(*stages[i])) for i, conv in zip(self.stages[:-1], self.PANLayer, strict=True)
        ]
        merged = self.CatConv(torch.cat((*maps, self._images(*stages[-1])), dim=1))
        return merged.permute(0, 2, 3, 1).reshape(x.shape[0], -1, merged.shape[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.WaveLifts(self.tokens(x))


class Head(nn.Module):
    """Dropout and a Linear: (B, C) -> (B, classes)."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        linear = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(nn.Dropout(dropout), linear)

    def forward(self, feature: Tensor) -> Tensor:
        return self.head(feature)


class OriginalIFDD(nn.Module):
    """IFDD: clips (B, 3, clip_frames, image_size, image_size) in [0, 1] -> OriginalOutput.

    The defaults are the published network. ``depths=(1, 2, 11, 2)`` gives the S backbone; other widths,
    depths and heads give small ones.

    Args:
        num_classes: number of expressions. clip_frames: frames of a clip; 8, 16 and 32 all become 8 frames in
        the conv embedding; s3d divides by 4. image_size: side of the frames, a multiple of 32 with four
        stages. embed_dim: channels of stage 0; they double from stage to stage. depths: blocks of each stage.
        heads: attention heads of each stage. kv_stride: spatial stride of keys and values in stage 0; halved
        from stage to stage. stages: stages that the pyramid aggregates, ascending, ending with the last.
        split: "interpolate", "topk" or "even_odd"; the conv lifting knows "even_odd" only. lifting:
        "update_first", "predict_first", "conv" or "none". self_conditioned: queries of the lifting steps come
        from the group they read. split_norm: LayerNorm of each group before lifting. embedding: "conv" or
        "s3d". ladm_heads: attention heads of the lifting. pool: side to which frames are pooled for the
        split. reach: largest offset, in frames, of the interpolated split. order_prior: favour even frames as
        static in the top-k split. dropout: before the classifier. drop_path: largest stochastic depth rate of
        the blocks, and the rate of the refinement. attention_dropout: after output projections and in MLPs.

    Raises:
        ValueError: names the argument that is unknown or does not fit the others.
    """

    def __init__(
        self,
        num_classes: int = 7,
        clip_frames: int = 16,
        image_size: int = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 2, 5, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        kv_stride: int = 8,
        stages: Sequence[int] = (2, 3),
        split: str = "interpolate",
        lifting: str = "update_first",
        self_conditioned: bool = False,
        split_norm: bool = True,
        embedding: str = "conv",
        ladm_heads: int = 8,
        pool: int = 7,
        reach: float = 2.0,
        order_prior: bool = False,
        dropout: float = 0.5,
        drop_path: float = 0.2,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        multiple = 4 * 2 ** (len(depths) - 1)
        if image_size <= 0 or image_size % multiple:
            raise ValueError(f"image_size: expected a multiple of {multiple}, got {image_size}")
        if embedding == "conv":
            self.embed: nn.Module = ConvEmbedding(embed_dim, clip_frames)
            frames = {32: 8}.get(clip_frames, clip_frames if clip_frames <= 8 else (clip_frames + 1) // 2)
        elif embedding == "s3d":
            if clip_frames % 8:
                raise ValueError(f"clip_frames: expected a multiple of 8 with s3d, got {clip_frames}")
            self.embed = S3DEmbedding(embed_dim)
            frames = clip_frames // 4
        else:
            raise ValueError(f"embedding: expected conv or s3d, got {embedding!r}")

        side = image_size // 4
        backbone = MultiscaleBackbone(
            (frames, side, side), embed_dim, depths, heads, kv_stride, attention_dropout, drop_path
        )
        channels, grid = backbone.channels[-1], backbone.grids[-1][1:]
        if lifting in ("update_first", "predict_first"):
            groups = make_split(split, channels, frames, grid, pool, reach, order_prior)
            lift: nn.Module = LADM(
                channels,
                frames,
                grid,
                groups,
                heads=ladm_heads,
                update_first=lifting == "update_first",
                self_conditioned=self_conditioned,
                split_norm=split_norm,
                dropout=attention_dropout,
                drop_path=drop_path,
            )
        elif lifting == "conv":
            if split != "even_odd":
                raise ValueError(f"split: the conv lifting splits even_odd, got {split!r}")
            lift = ConvLifting(channels, frames, grid)
        elif lifting == "none":
            groups = make_split(split, channels, frames, grid, pool, reach, order_prior)
            lift = NoLifting(frames, grid, groups)
        else:
            raise ValueError(f"lifting: expected update_first, predict_first, conv or none, got {lifting!r}")
        if self_conditioned and not isinstance(lift, LADM):
            raise ValueError(f"self_conditioned: the lifting {lifting!r} has no queries")
        self.backbone = PyramidLifting(backbone, stages, lift)
        self.head = Head(channels, num_classes, dropout)

    def forward(self, clips: Tensor) -> OriginalOutput:
        residual, dynamic = self.backbone(self.embed(clips))
        return OriginalOutput(self.head(dynamic), residual, dynamic)
