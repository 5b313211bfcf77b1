"""Networks by name, with weights from a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal, overload

from ifdd.checkpoint import load_pretrained
from ifdd.config import IFDDConfig
from ifdd.features import FeatureExtractor
from ifdd.model import IFDD

logger = logging.getLogger(__name__)

_MODELS: dict[str, dict[str, Any]] = {
    "ifdd_nano": {"backbone": "mvit_nano", "image_size": 64},
    "ifdd_xs": {"backbone": "mvit_xs"},
    "ifdd_s": {"backbone": "mvit_s"},
}


def list_models() -> list[str]:
    """Names that `create_model` knows, sorted."""
    return sorted(_MODELS)


@overload
def create_model(
    name: str = ...,
    *,
    pretrained: str | os.PathLike[str] | None = ...,
    reset_head: bool = ...,
    features_only: Literal[False] = ...,
    **overrides: Any,
) -> IFDD: ...


@overload
def create_model(
    name: str = ...,
    *,
    pretrained: str | os.PathLike[str] | None = ...,
    reset_head: bool = ...,
    features_only: Literal[True],
    out_indices: Sequence[int] = ...,
    **overrides: Any,
) -> FeatureExtractor: ...


def create_model(
    name: str = "ifdd_xs",
    *,
    pretrained: str | os.PathLike[str] | None = None,
    reset_head: bool = False,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **overrides: Any,
) -> IFDD | FeatureExtractor:
    """An IFDD network by name.

    Args:
        name: one of `list_models()`; `ifdd_nano` is made for 64-pixel frames unless `image_size` is given.
        pretrained: a weights file: a checkpoint of this package, the original implementation's weights, or
            torchvision's `mvit_v2_s` weights (embedding and backbone only). Which one was found is logged.
        reset_head: keep the fresh classifier where the file's has another number of classes.
        features_only: return embedding and backbone alone, an `ifdd.features.FeatureExtractor` of the maps of
            the stages.
        out_indices: the stages whose maps it returns, from 0 to 3 or from -4 to -1; all by default.
        **overrides: fields of `IFDDConfig`, except `backbone`, which the name fixes.

    Returns:
        The network in training mode, float32, on the CPU; a `FeatureExtractor` with `features_only`.

    Raises:
        ValueError: an unknown name or field, or weights that do not fit the network.
        ifdd.checkpoint.CheckpointError: a file that cannot be read.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; known models are {list_models()}")
    if "backbone" in overrides:
        raise ValueError(f"the name {name!r} fixes the backbone; choose another name from {list_models()}")
    if out_indices is not None and not features_only:
        raise ValueError(f"create_model: out_indices={out_indices!r} needs features_only=True")
    model = IFDD(IFDDConfig.from_dict({**_MODELS[name], **overrides}))
    if pretrained is not None:
        report = load_pretrained(model, pretrained, reset_head=reset_head)
        logger.info("%s", report)
    if features_only:
        return FeatureExtractor(model) if out_indices is None else FeatureExtractor(model, out_indices)
    return model
