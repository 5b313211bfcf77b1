"""Which network weights belong to, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from ifdd.checkpoint.files import WeightsFile

Kind = Literal["checkpoint", "original", "torchvision"]

SIGNATURES: dict[Kind, tuple[str, ...]] = {
    "torchvision": ("conv_proj.weight", "pos_encoding.class_token"),
    "original": ("backbone.backbone.pos_encoding.class_token",),
    "checkpoint": ("backbone.class_token",),
}
"""Names that the weights of a kind have, and those of no other kind."""

NAMES_OF_KINDS: dict[Kind, str] = {
    "checkpoint": "weights of an IFDD network",
    "original": "weights of the original implementation",
    "torchvision": "torchvision MViTv2 weights",
}


def kind_of(weights: Mapping[str, torch.Tensor]) -> Kind | None:
    """The kind of weights with these names, or None."""
    for kind, names in SIGNATURES.items():
        if all(name in weights for name in names):
            return kind
    return None


def unknown_weights(file: WeightsFile) -> str:
    """Says what a file holds in the place of weights of a known kind."""
    inside = f" (in {file.place})" if file.place else ""
    wanted = ", ".join(
        f"{' and '.join(names)} ({NAMES_OF_KINDS[kind]})" for kind, names in SIGNATURES.items()
    )
    return f"weights of no known network: they begin with {file.first_names()}{inside}; expected {wanted}"
