"""The whole network."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ifdd.config import EMBEDDED_FRAMES, IFDDConfig
from ifdd.initialisation import start_at_unit_gain
from ifdd.modules.backbone import MultiscaleBackbone
from ifdd.modules.children import is_untouched, lowered_layers
from ifdd.modules.embedding import ConvEmbedding, S3DEmbedding
from ifdd.modules.head import ClassHead
from ifdd.modules.ladm import LADM, ConvLifting, Lifted, Lifting, NoLifting
from ifdd.modules.pyramid import PyramidAggregation
from ifdd_kernels._serialised import serialisable

if TYPE_CHECKING:
    from typing_extensions import Self

#: Modules behind the backbone that say which layers may be cast together; what replaces them may not.
_LOWERABLE = (PyramidAggregation, LADM, ConvLifting, NoLifting, ClassHead)


@serialisable
class IFDDOutput(NamedTuple):
    """The result of the network, in training and in evaluation.

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
        #: One name per logit where they are known: those of the checkpoint that the network came from.
        self.class_names: tuple[str, ...] | None = None
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
        parts: tuple[Any, ...] = (self.pyramid, self.lifting, self.head)
        plain = [part for part in parts if type(part) in _LOWERABLE and is_untouched(part)]
        with lowered_layers(clips, *(layer for part in plain for layer in part.lowerable())):
            return self.forward_head(self.forward_features(clips))

    def features(self, clips: torch.Tensor) -> IFDDFeatures:
        """As `forward`, with the inner quantities kept. Clips (B, 3, T_in, S, S).

        Raises:
            ValueError: as `forward`.
        """
        lifted: Lifted = self.lifting(self.forward_features(clips), everything=True)
        grid = self.config.lifting_grid
        return IFDDFeatures(
            lifted.indexes.static,
            lifted.indexes.dynamic,
            lifted.indexes.correlation,
            lifted.static.unflatten(2, grid),
            lifted.dynamic.unflatten(2, grid),
            IFDDOutput(self.head(lifted.feature), lifted.residual, lifted.feature),
        )

    def forward_features(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, 3, T_in, S, S) -> the tokens (B, T*N, C) that are split and lifted.

        `ifdd.create_model(..., features_only=True)` returns the maps of the single stages.

        Raises:
            ValueError: as `forward`.
        """
        self._check(clips)
        tokens = self.embedding(clips).flatten(2).transpose(1, 2)
        stages = self.backbone(tokens, self.config.stages)
        merged: torch.Tensor = self.pyramid([stages[stage] for stage in self.config.stages])
        return merged

    def forward_head(self, tokens: torch.Tensor) -> IFDDOutput:
        """The result of `forward`, computed from the tokens of `forward_features`."""
        feature, residual = self.lifting(tokens)
        return IFDDOutput(self.head(feature), residual, feature)

    def get_classifier(self) -> nn.Module:
        """The layer that makes the logits."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Puts a fresh classifier of another number of classes in the place of the old one.

        Raises:
            ValueError: fewer than one class.
        """
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        like = next(self.head.parameters())
        head = ClassHead(self.config.stage_channels[-1], num_classes, self.config.dropout)
        self.head = head.to(like.device, like.dtype).train(self.training)
        self.class_names = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """The network in a folder that `save_pretrained` wrote, or in a repository of the Hugging Face Hub.

        It is in evaluation mode on the CPU; `class_names` has the names of its logits.

        Args:
            name: a folder, or the id of a repository, `owner/name`. A folder of that name is preferred.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept; the Hub's own default is decided by its variables.
            local_files_only: take what was downloaded before, without network (as HF_HUB_OFFLINE=1 does).
            token: for a private repository; True takes the stored one.

        Raises:
            ifdd.checkpoint.CheckpointError: no such folder or repository, or files that are missing, damaged
                or do not fit.
            ImportError: a repository, and huggingface_hub is not installed. Folders need no package.
        """
        hub = _hub()
        found = hub.repository_files(name, revision, cache_dir, local_files_only, token)
        network: Self = hub.load_folder(cls, *found)
        return network

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
    ) -> None:
        """Writes `config.json`, `model.safetensors` and, if there is none, a model card `README.md`.

        `model.safetensors` is a checkpoint as `ifdd.checkpoint.save_checkpoint` writes it, so that
        `ifdd predict` takes it as well.

        Args:
            folder: made if it does not exist. Files of these names are replaced, each whole or not at all.
            class_names: one distinct name per logit; by default `self.class_names`, else "class 0" and so on.

        Raises:
            ValueError: names that do not fit.
            OSError: a file that cannot be written.
        """
        _hub().save_folder(self, folder, class_names)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        class_names: Sequence[str] | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload an IFDD network",
        token: str | bool | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes to a repository of the Hugging Face Hub; returns its address.

        Args:
            repo_id: `owner/name`; the repository is made if it does not exist. Its README.md is kept if it
                has one.
            class_names: as for `save_pretrained`.
            private: of a new repository; None is the owner's default.
            revision: branch to upload to.
            commit_message: what the upload is called there.
            token: with leave to write; by default the stored one.

        Raises:
            ValueError: names that do not fit.
            ImportError: huggingface_hub is not installed.
            OSError: the Hub refuses, or cannot be reached.
        """
        address: str = _hub().upload(self, repo_id, class_names, private, revision, commit_message, token)
        return address

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


def _hub() -> Any:
    """`ifdd.hub`, which is made of checkpoints and so of this module."""
    return importlib.import_module("ifdd.hub")


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
