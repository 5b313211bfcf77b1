"""The whole network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ifdd.config import EMBEDDED_FRAMES, IFDDConfig
from ifdd.initialisation import start_at_unit_gain
from ifdd.modules.backbone import MultiscaleBackbone
from ifdd.modules.embedding import ConvEmbedding, S3DEmbedding
from ifdd.modules.head import ClassHead
from ifdd.modules.ladm import LADM, ConvLifting, Lifted, Lifting, NoLifting
from ifdd.modules.pyramid import PyramidAggregation
from ifdd_kernels._serialised import serialisable


@serialisable
class IFDDOutput(NamedTuple):
    """What the network returns, in training and in evaluation.

    `logits` (B, classes); `lifting_residual` (B, H, W), the argument of the lifting loss ((B, H//2, W//2)
    when self-conditioned); `dynamic` (B, C), the feature the logits come from.
    """

    logits: torch.Tensor
    lifting_residual: torch.Tensor
    dynamic: torch.Tensor


@serialisable
class IFDDFeatures(NamedTuple):
    """The inner quantities of one forward pass, for figures and analysis.

    `static_index`, `dynamic_index` (B, T/2): frame indexes, fractional for the learned split, int64
    otherwise; `correlation` (B, T, T) of the frames, None unless the split is learned; `static`, `dynamic`
    (B, T/2, H, W, C): both groups after lifting, before refinement; `output`: what `IFDD.forward` returns.
    """

    static_index: torch.Tensor
    dynamic_index: torch.Tensor
    correlation: torch.Tensor | None
    static: torch.Tensor
    dynamic: torch.Tensor
    output: IFDDOutput


class IFDD(nn.Module):
    """Facial expression recognition in video: embedding, MViTv2, pyramid, split (ISSM), lifting (LADM), head.

    Source: Wang & Chai, "Lifting Scheme-Based Implicit Disentanglement of Emotion-Related Facial Dynamics in
    the Wild", AAAI 2025, arXiv:2412.13168.

    Args:
        config: the network; the default is the paper's.
    """

    def __init__(self, config: IFDDConfig | None = None) -> None:
        super().__init__()
        config = IFDDConfig() if config is None else config
        self.config = config
        channels = config.stage_channels
        self.embedding: ConvEmbedding | S3DEmbedding
        if config.embedding == "s3d":
            self.embedding = S3DEmbedding(channels[0])
        else:
            self.embedding = ConvEmbedding(channels[0], config.clip_frames)
        self.backbone = MultiscaleBackbone(
            config.embedded_grid,
            channels,
            config.stage_depths,
            config.drop_path,
            config.activation_checkpointing,
        )
        self.pyramid = PyramidAggregation(
            [channels[stage] for stage in config.stages],
            [self.backbone.stage_grids[stage] for stage in config.stages],
        )
        self.lifting = _make_lifting(config)
        self.head = ClassHead(channels[-1], config.num_classes, config.dropout)
        if config.initialisation == "unit_gain":
            start_at_unit_gain(self.embedding, self.backbone)

    def forward(self, clips: torch.Tensor) -> IFDDOutput:
        """Clips (B, 3, T_in, S, S), floating-point RGB in [0, 1] -> logits, lifting residual, feature.

        The values themselves are not inspected (a NaN frame gives NaN logits): that would cost a pass over
        the clip and a synchronisation; `ifdd.prediction` checks what it reads.

        Raises:
            ValueError: clips of another rank, size or type than the configuration says.
        """
        feature, residual = self.lifting(self._tokens(clips))
        return IFDDOutput(self.head(feature), residual, feature)

    def features(self, clips: torch.Tensor) -> IFDDFeatures:
        """As `forward`, with the inner quantities kept. Clips (B, 3, T_in, S, S).

        Raises:
            ValueError: as `forward`.
        """
        lifted: Lifted = self.lifting(self._tokens(clips), everything=True)
        grid = self.config.lifting_grid
        return IFDDFeatures(
            lifted.indexes.static,
            lifted.indexes.dynamic,
            lifted.indexes.correlation,
            lifted.static.unflatten(2, grid),
            lifted.dynamic.unflatten(2, grid),
            IFDDOutput(self.head(lifted.feature), lifted.residual, lifted.feature),
        )

    def _tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips -> the tokens (B, T*N, C) that are split and lifted."""
        self._check(clips)
        tokens = self.embedding(clips).flatten(2).transpose(1, 2)
        stages = self.backbone(tokens, self.config.stages)
        merged: torch.Tensor = self.pyramid([stages[stage] for stage in self.config.stages])
        return merged

    def _check(self, clips: torch.Tensor) -> None:
        size = self.config.image_size
        expected = (3, self.config.clip_frames, size, size)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            raise ValueError(
                "IFDD: clips must be (B, channels, frames, height, width) = "
                f"(B, {', '.join(map(str, expected))}); "
                f"got {tuple(clips.shape)}"
            )
        if not clips.is_floating_point():
            raise ValueError(f"IFDD: clips must be floating point RGB in [0, 1]; got {clips.dtype}")


def _make_lifting(config: IFDDConfig) -> Lifting:
    channels = config.stage_channels[-1]
    if config.lifting == "conv":
        return ConvLifting(EMBEDDED_FRAMES, config.lifting_grid, channels)
    if config.lifting == "none":
        return NoLifting(
            EMBEDDED_FRAMES,
            config.lifting_grid,
            channels,
            split=config.split,
            pool=config.split_pool,
            index_sampling=config.index_sampling,
            topk_order_prior=config.topk_order_prior,
        )
    return LADM(
        EMBEDDED_FRAMES,
        config.lifting_grid,
        channels,
        config.lifting_heads,
        split=config.split,
        order=config.lifting,
        split_norm=config.split_norm,
        self_conditioned=config.self_conditioned,
        pool=config.split_pool,
        index_sampling=config.index_sampling,
        topk_order_prior=config.topk_order_prior,
        drop_path=config.drop_path,
        attention_dropout=config.attention_dropout,
    )
