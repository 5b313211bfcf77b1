"""Weights of the authors' implementation and of torchvision's MViTv2, under this package's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ifdd.checkpoint.files import Weights, listing, wrong_shapes
from ifdd.checkpoint.foreign_names import NameMap, as_linear, original_names, torchvision_names
from ifdd.config import BACKBONES, IFDDConfig
from ifdd.model import IFDD

TORCHVISION_DEPTHS = (1, 2, 11, 2)


class ConvertedWeights(NamedTuple):
    """Weights that were brought under this package's names."""

    #: The weights, as `load_state_dict` takes them.
    state_dict: Weights
    #: The foreign names that were left out, sorted.
    dropped: list[str]


def from_original(
    state_dict: Mapping[str, torch.Tensor], part: str = "model", target: nn.Module | None = None
) -> ConvertedWeights:
    """Weights of the authors' implementation under this package's names.

    Dropped are the tensors without any effect: `spatial_pos`, `temporal_pos`, `class_pos`, `time_project.*`
    and the constant index buffers. Everything else is converted or refused.

    Args:
        state_dict: weights under the original's names, relative to the part.
        part: `model`, `issm`, `ladm` (any of the lifting variants), `block` or `embedding`.
        target: a module the weights are for; its names and shapes are then checked too.

    Returns:
        `ConvertedWeights`; tensors keep their dtype, linear layers get the shape (out, in).

    Raises:
        KeyError: names that the part must have are missing, or names it cannot have are there.
        ValueError: an unknown part, or shapes other than the target's.
    """
    converted = _convert(state_dict, original_names(state_dict, part), f"original {part}")
    if target is not None:
        _check_target(converted.state_dict, target, f"original {part}")
    return converted


def from_torchvision_mvit(state_dict: Mapping[str, torch.Tensor], config: IFDDConfig) -> ConvertedWeights:
    """Embedding and backbone weights from torchvision's `mvit_v2_s` (Kinetics-400) for a network of `config`.

    `mvit_s` takes all 16 blocks; `mvit_xs` takes blocks 0 to 7, 14 and 15. Relative position tables of
    another length are linearly interpolated. With the `s3d` embedding the patch convolution is dropped. The
    result holds embedding and backbone only.

    Args:
        state_dict: torchvision's weights, under its names.
        config: of the network that the weights are for.

    Returns:
        `ConvertedWeights`; tensors keep their dtype, position tables become (2 max(Q, K) - 1, head width).

    Raises:
        KeyError: missing or unknown names.
        ValueError: a configuration with another backbone, or weights of other shapes.
    """
    depths = config.stage_depths
    if config.stage_channels[0] != BACKBONES["mvit_s"].embed_dim or depths not in (
        BACKBONES["mvit_s"].depths,
        BACKBONES["mvit_xs"].depths,
    ):
        raise ValueError(
            "torchvision's mvit_v2_s weights fit the mvit_s and mvit_xs backbones only; "
            f"got stage depths {depths}, embed_dim {config.stage_channels[0]}"
        )
    converted = _convert(state_dict, torchvision_names(state_dict), "torchvision mvit_v2_s")
    with torch.device("meta"):
        wanted = {
            name: tensor
            for name, tensor in IFDD(config).state_dict().items()
            if name.startswith(("embedding.conv.", "backbone."))
        }
    sources = _torchvision_blocks(depths)
    weights: Weights = {}
    for name, like in wanted.items():
        source = re.sub(r"blocks\.(\d+)\.", lambda match: f"blocks.{sources[int(match[1])]}.", name)
        if source not in converted.state_dict:
            raise KeyError(f"torchvision mvit_v2_s: no weight for {name} (as {source})")
        weights[name] = _fit(name, converted.state_dict[source], like)
    used = {re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{sources[int(m[1])]}.", name) for name in wanted}
    left = torchvision_names(state_dict).required
    unused = [theirs for theirs, ours in left.items() if ours not in used]
    return ConvertedWeights(weights, sorted([*converted.dropped, *unused]))


def _convert(state_dict: Mapping[str, torch.Tensor], names: NameMap, what: str) -> ConvertedWeights:
    missing = sorted(set(names.required) - set(state_dict))
    unknown = sorted(set(state_dict) - set(names.required) - names.unused)
    if missing or unknown:
        raise KeyError(f"{what} weights: missing {listing(missing)}; unknown {listing(unknown)}")
    weights = {ours: as_linear(theirs, state_dict[theirs]) for theirs, ours in names.required.items()}
    return ConvertedWeights(weights, sorted(names.unused & set(state_dict)))


def _check_target(weights: Mapping[str, torch.Tensor], target: nn.Module, what: str) -> None:
    wanted = target.state_dict()
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        raise KeyError(
            f"{what} weights for {type(target).__name__}: missing {listing(missing)}; "
            f"unknown {listing(unknown)}"
        )
    shapes = wrong_shapes(weights, wanted)
    if shapes:
        raise ValueError(f"{what} weights for {type(target).__name__}: {listing(shapes)}")


def _torchvision_blocks(depths: Sequence[int]) -> list[int]:
    """For each of our blocks the torchvision block of the same stage and place it starts from."""
    sources: list[int] = []
    start = 0
    for depth, available in zip(depths, TORCHVISION_DEPTHS, strict=True):
        sources += range(start, start + depth)
        start += available
    return sources


def _fit(name: str, tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if ".table_" in name and tensor.ndim == 2 and tensor.shape[0] != like.shape[0]:
        rows = tensor.float().t().unsqueeze(0)
        tensor = F.interpolate(rows, size=like.shape[0], mode="linear")[0].t().to(tensor.dtype)
    if tensor.shape != like.shape:
        raise ValueError(
            f"torchvision mvit_v2_s: {name} is {tuple(tensor.shape)} instead of {tuple(like.shape)}"
        )
    return tensor.contiguous()
