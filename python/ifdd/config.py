"""The configuration of an IFDD network: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STAGE_COUNT = 4
STAGE_HEADS = (1, 2, 4, 8)
STAGE_WIDTHS = (1, 2, 4, 8)
PATCH_STRIDE = 4
TOTAL_STRIDE = PATCH_STRIDE * 2 ** (STAGE_COUNT - 1)
EMBEDDED_FRAMES = 8

SPLITS = ("interpolate", "topk", "even_odd")
LIFTINGS = ("update_first", "predict_first", "conv", "none")
INDEX_SAMPLINGS = ("original", "aligned")
INITIALISATIONS = ("published", "unit_gain")
EMBEDDING_FRAMES: dict[str, tuple[int, ...]] = {"conv": (8, 16, 32), "s3d": (32,)}
"""Clip lengths that each embedding turns into `EMBEDDED_FRAMES` frames."""


@dataclass(frozen=True)
class BackbonePreset:
    """Width of the first stage and number of blocks in each of the four stages."""

    embed_dim: int
    depths: tuple[int, int, int, int]


BACKBONES: dict[str, BackbonePreset] = {
    "mvit_nano": BackbonePreset(16, (1, 1, 2, 1)),
    "mvit_xs": BackbonePreset(96, (1, 2, 5, 2)),
    "mvit_s": BackbonePreset(96, (1, 2, 11, 2)),
}


@dataclass(frozen=True)
class IFDDConfig:
    """Everything that decides the shape and the behaviour of an `ifdd.IFDD` network.

    The defaults are the network of the paper (Wang & Chai, AAAI 2025, arXiv:2412.13168) for 16-frame clips.

    Args:
        num_classes: expression classes, at least 1.
        clip_frames: frames of a clip; 8, 16 or 32 (the embedding makes 8 of them), 32 for embedding `s3d`.
        image_size: height and width of a frame in pixels; a positive multiple of 32.
        backbone: `mvit_xs` (the paper's), `mvit_s` (MViTv2-S) or `mvit_nano` (tests and CPU demonstrations).
        embed_dim: width of the first stage (4 stages: x1, x2, x4, x8); default: the backbone's.
        depths: blocks of each of the 4 stages; default: the backbone's.
        embedding: `conv` (one 3-D convolution) or `s3d` (separable convolution stem with batch norm).
        stages: backbone stages that the pyramid merges, ascending, from 0 to 3; the last is 3.
        split: how frames become a static and a dynamic group: `interpolate` (ISSM, learned fractional
            indexes), `topk` (hard selection by correlation) or `even_odd` (lazy wavelet).
        split_pool: frames are pooled to a grid with this side before they are compared (`interpolate`,
            `topk`).
        split_norm: LayerNorm on both groups before lifting (only LADM: `update_first`, `predict_first`).
        topk_order_prior: add 1 to the score of even frames (only with split `topk`).
        index_sampling: `original` samples frame i at i*T/(T-1) - 1/2 as the authors' implementation does,
            `aligned` at i (only with split `interpolate`).
        lifting: `update_first` or `predict_first` (LADM), `conv` (separable convolutions, even and odd
            frames) or `none` (only compresses the dynamic group).
        self_conditioned: take the queries of both lifting steps from the source group (only LADM).
        lifting_heads: attention heads of LADM; must divide 8 * embed_dim.
        dropout: dropout rate before the classifier.
        drop_path: rate of stochastic depth: rises from 0 to this over the backbone, and is this in LADM.
        attention_dropout: dropout rate on the attention outputs and in the MLP of LADM.
        activation_checkpointing: recompute backbone blocks in the backward pass to save memory.
        initialisation: `published` (truncated normal 0.02 in the backbone, for pretrained starts and wide
            networks) or `unit_gain` (`ifdd.initialisation`: for narrow networks trained from nothing).

    Raises:
        ValueError: a field has a value outside its range, or two fields exclude each other.
    """

    num_classes: int = 7
    clip_frames: int = 16
    image_size: int = 224
    backbone: str = "mvit_xs"
    embed_dim: int | None = None
    depths: tuple[int, ...] | None = None
    embedding: str = "conv"
    stages: tuple[int, ...] = (2, 3)
    split: str = "interpolate"
    split_pool: int = 7
    split_norm: bool = True
    topk_order_prior: bool = False
    index_sampling: str = "original"
    lifting: str = "update_first"
    self_conditioned: bool = False
    lifting_heads: int = 8
    dropout: float = 0.5
    drop_path: float = 0.2
    attention_dropout: float = 0.0
    activation_checkpointing: bool = False
    initialisation: str = "published"

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_combinations()

    def _check_fields(self) -> None:
        _one_of("backbone", self.backbone, tuple(BACKBONES))
        _one_of("embedding", self.embedding, tuple(EMBEDDING_FRAMES))
        _one_of("split", self.split, SPLITS)
        _one_of("lifting", self.lifting, LIFTINGS)
        _one_of("index_sampling", self.index_sampling, INDEX_SAMPLINGS)
        _one_of("initialisation", self.initialisation, INITIALISATIONS)
        for name in ("num_classes", "image_size", "split_pool", "lifting_heads"):
            _positive_int(name, getattr(self, name))
        if self.image_size % TOTAL_STRIDE:
            raise ValueError(
                f"image_size must be a positive multiple of {TOTAL_STRIDE}, so that all four stages have "
                f"whole grids; got {self.image_size}"
            )
        if self.embed_dim is not None:
            _positive_int("embed_dim", self.embed_dim)
        if self.depths is not None:
            object.__setattr__(self, "depths", _int_tuple("depths", self.depths))
            if len(self.depths) != STAGE_COUNT or min(self.depths) < 1:
                raise ValueError(
                    f"depths must be {STAGE_COUNT} block counts of at least 1; got {self.depths}"
                )
        object.__setattr__(self, "stages", _int_tuple("stages", self.stages))
        if (
            not self.stages
            or self.stages[-1] != STAGE_COUNT - 1
            or self.stages[0] < 0
            or any(a >= b for a, b in zip(self.stages, self.stages[1:], strict=False))
        ):
            raise ValueError(
                f"stages must be ascending backbone stages from 0 to {STAGE_COUNT - 1} that end with "
                f"{STAGE_COUNT - 1}; got {self.stages}"
            )
        for name in ("dropout", "drop_path", "attention_dropout"):
            _rate(name, getattr(self, name))
        for name in ("split_norm", "topk_order_prior", "self_conditioned", "activation_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")

    def _check_combinations(self) -> None:
        allowed = EMBEDDING_FRAMES[self.embedding]
        if isinstance(self.clip_frames, bool) or self.clip_frames not in allowed:
            raise ValueError(
                f"clip_frames must be one of {allowed} for embedding={self.embedding!r}; "
                f"got {self.clip_frames!r}"
            )
        attends = self.lifting in ("update_first", "predict_first")
        if self.lifting == "conv" and self.split != "even_odd":
            raise ValueError(
                "lifting='conv' works on even and odd frames: it needs split='even_odd'; "
                f"got split={self.split!r}"
            )
        if self.self_conditioned and not attends:
            raise ValueError(
                "self_conditioned needs attention, lifting='update_first' or 'predict_first'; "
                f"got lifting={self.lifting!r}"
            )
        if self.self_conditioned and self.image_size < 2 * TOTAL_STRIDE:
            raise ValueError(
                f"self_conditioned halves the residual grid: image_size must be at least {2 * TOTAL_STRIDE}; "
                f"got {self.image_size}"
            )
        if self.topk_order_prior and self.split != "topk":
            raise ValueError(f"topk_order_prior needs split='topk'; got split={self.split!r}")
        if self.index_sampling != "original" and self.split != "interpolate":
            raise ValueError(
                f"index_sampling={self.index_sampling!r} needs split='interpolate'; got split={self.split!r}"
            )
        if attends and self.stage_channels[-1] % self.lifting_heads:
            raise ValueError(
                f"lifting_heads must divide the {self.stage_channels[-1]} channels of the last stage; "
                f"got {self.lifting_heads}"
            )

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the four backbone stages."""
        width = BACKBONES[self.backbone].embed_dim if self.embed_dim is None else self.embed_dim
        return tuple(width * factor for factor in STAGE_WIDTHS)

    @property
    def stage_depths(self) -> tuple[int, ...]:
        """Blocks of the four backbone stages."""
        return BACKBONES[self.backbone].depths if self.depths is None else self.depths

    @property
    def embedded_grid(self) -> tuple[int, int, int]:
        """(T, H, W) of the tokens that enter the backbone."""
        side = self.image_size // PATCH_STRIDE
        return EMBEDDED_FRAMES, side, side

    @property
    def lifting_grid(self) -> tuple[int, int]:
        """(H, W) of the tokens that are split and lifted."""
        side = self.image_size // TOTAL_STRIDE
        return side, side

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values (tuples become lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IFDDConfig:
        """Inverse of `to_dict`; absent fields take their defaults.

        Raises:
            ValueError: unknown field names, or values the constructor refuses.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration fields {unknown}; known fields are {sorted(known)}")
        return cls(**values)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}")


def _positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")


def _int_tuple(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or any(
        isinstance(v, bool) or not isinstance(v, int) for v in value
    ):
        raise ValueError(f"{name} must be a tuple of integers; got {value!r}")
    return tuple(value)


def _rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be a rate in [0, 1); got {value!r}")
