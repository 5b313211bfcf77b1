"""Names of weights in the authors' implementation and in torchvision's MViTv2, and ours for each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

WEIGHT_BIAS = ("weight", "bias")
NORM_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _leaves(names: Mapping[str, str], suffixes: Iterable[str]) -> dict[str, str]:
    suffixes = tuple(suffixes)
    return {f"{old}.{leaf}": f"{new}.{leaf}" for old, new in names.items() for leaf in suffixes}


def _conv_norm(old: str, new: str) -> dict[str, str]:
    """A ConvNormReLU: `old`.0 is the convolution, `old`.1 the batch norm."""
    return {f"{old}.0.weight": f"{new}.conv.weight", **_leaves({f"{old}.1": f"{new}.norm"}, NORM_STATE)}


def _separable(old: str, new: str) -> dict[str, str]:
    return {**_conv_norm(f"{old}.0", f"{new}.spatial"), **_conv_norm(f"{old}.1", f"{new}.temporal")}


BLOCK = {
    **_leaves(
        {
            "norm1": "attention_norm",
            "norm2": "mlp_norm",
            "attn.qkv": "attention.qkv",
            "attn.project.0": "attention.output",
            "attn.pool_q.norm_act.0": "attention.norm_q",
            "attn.pool_k.norm_act.0": "attention.norm_k",
            "attn.pool_v.norm_act.0": "attention.norm_v",
            "mlp.0": "mlp_expand",
            "mlp.3": "mlp_contract",
        },
        WEIGHT_BIAS,
    ),
    **{f"attn.pool_{x}.pool.weight": f"attention.pool_{x}.weight" for x in "qkv"},
    **{f"attn.rel_pos_{axis}": f"attention.table_{axis}" for axis in "hwt"},
}
BLOCK_SHORTCUT = _leaves({"project": "shortcut"}, WEIGHT_BIAS)

ISSM = {
    **_leaves({"dim_project.0": "tokenizer"}, WEIGHT_BIAS),
    "offset_project_approx.0.weight": "static_offset.weight",
    "offset_project_detail.0.weight": "dynamic_offset.weight",
}
ISSM_UNUSED = (
    *_leaves({"time_project.0": "", "time_project.2": ""}, WEIGHT_BIAS),
    "index_even",
    "index_odd",
)

COMPRESS = {"project_compress.weight": "compress.weight"}
COMPRESS_BIAS = {"project_compress.bias": "compress.bias"}
LADM = {
    **_leaves(
        {
            "q_a": "updater.query",
            "kv_d": "updater.key_value",
            "project_a.0": "updater.output",
            "q_d": "predictor.query",
            "kv_a": "predictor.key_value",
            "project_d.0": "predictor.output",
            "out_norm1": "attention_norm",
            "qkv": "attention.qkv",
            "project.0": "attention.output",
            "out_norm2": "mlp_norm",
            "mlp.0": "mlp_expand",
            "mlp.3": "mlp_contract",
        },
        WEIGHT_BIAS,
    ),
    **COMPRESS,
}
LADM_NORMS = _leaves({"xa_norm": "static_norm", "xd_norm": "dynamic_norm"}, WEIGHT_BIAS)
LADM_UNUSED = ("spatial_pos", "temporal_pos", "class_pos")
CONV_LIFTING = {**_separable("U", "updater"), **_separable("P", "predictor"), **COMPRESS}

CONV_EMBEDDING = _leaves({"conv_proj": "conv"}, WEIGHT_BIAS)
S3D_EMBEDDING = {
    **_separable("features.0", "stem"),
    **_conv_norm("features.2", "mix"),
    **_separable("features.3", "widen"),
    **_conv_norm("fuse.0", "fuse"),
}
HEAD = _leaves({"head.1": "classifier"}, WEIGHT_BIAS)


@dataclass
class NameMap:
    """Which names a part must have, with ours for each, and which it may have without effect."""

    required: dict[str, str] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)

    def add(self, names: Mapping[str, str], old: str = "", new: str = "", unused: Iterable[str] = ()) -> None:
        """Adds names under the prefixes `old` and `new` (with their dots)."""
        self.required.update({old + theirs: new + ours for theirs, ours in names.items()})
        self.unused.update(old + theirs for theirs in unused)


def _has(keys: Iterable[str], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in keys)


def _add_blocks(names: NameMap, keys: Iterable[str], old: str, new: str) -> None:
    pattern = re.compile(re.escape(old) + r"(\d+)\.")
    found = {int(match[1]) for key in keys if (match := pattern.match(key))}
    for index in range(max(found, default=0) + 1):
        _add_block(names, keys, f"{old}{index}.", f"{new}{index}.")


def _add_block(names: NameMap, keys: Iterable[str], old: str = "", new: str = "") -> None:
    names.add(BLOCK, old, new)
    if _has(keys, f"{old}project."):
        names.add(BLOCK_SHORTCUT, old, new)


def _add_lifting(names: NameMap, keys: Iterable[str], old: str = "", new: str = "") -> None:
    if _has(keys, f"{old}U.") or _has(keys, f"{old}P."):
        names.add(CONV_LIFTING, old, new)
        return
    if f"{old}project_compress.bias" in keys:
        names.add({**COMPRESS, **COMPRESS_BIAS}, old, new)
    else:
        names.add(LADM, old, new, LADM_UNUSED)
        if _has(keys, f"{old}xa_norm.") or _has(keys, f"{old}xd_norm."):
            names.add(LADM_NORMS, old, new)
    if _has(keys, f"{old}adapt_split."):
        names.add(ISSM, f"{old}adapt_split.", f"{new}split.", ISSM_UNUSED)


def _add_model(names: NameMap, keys: Iterable[str]) -> None:
    stem = S3D_EMBEDDING if _has(keys, "embed.features.") else CONV_EMBEDDING
    names.add(stem, "embed.", "embedding.")
    names.add({"pos_encoding.class_token": "class_token"}, "backbone.backbone.", "backbone.")
    names.add(_leaves({"norm": "norm"}, WEIGHT_BIAS), "backbone.backbone.", "backbone.")
    _add_blocks(names, keys, "backbone.backbone.blocks.", "backbone.blocks.")
    layers = sum(key.startswith("backbone.PANLayer.") for key in keys)
    if layers or "backbone.CatConv.weight" in keys:
        names.add(
            {f"PANLayer.{i}.weight": f"reduce.{i}.weight" for i in range(layers)}, "backbone.", "pyramid."
        )
        names.add({"CatConv.weight": "merge.weight"}, "backbone.", "pyramid.")
    _add_lifting(names, keys, "backbone.WaveLifts.", "lifting.")
    names.add(HEAD, "head.", "head.")


def original_names(keys: Iterable[str], part: str) -> NameMap:
    """The name map of `model`, `issm`, `ladm`, `block` or `embedding`, for the variant the keys belong to.

    Raises:
        ValueError: another part.
    """
    keys = set(keys)
    names = NameMap()
    if part == "model":
        _add_model(names, keys)
    elif part == "issm":
        names.add(ISSM, unused=ISSM_UNUSED)
    elif part == "ladm":
        _add_lifting(names, keys)
    elif part == "block":
        _add_block(names, keys)
    elif part == "embedding":
        names.add(S3D_EMBEDDING if _has(keys, "features.") else CONV_EMBEDDING)
    else:
        raise ValueError(f"part must be one of {PARTS}; got {part!r}")
    return names


PARTS = ("model", "issm", "ladm", "block", "embedding")


def torchvision_names(keys: Iterable[str]) -> NameMap:
    """The name map of torchvision's MViTv2: embedding and backbone; its head counts as unused."""
    keys = set(keys)
    names = NameMap()
    names.add(CONV_EMBEDDING, "", "embedding.")
    names.add({"pos_encoding.class_token": "class_token"}, "", "backbone.")
    names.add(_leaves({"norm": "norm"}, WEIGHT_BIAS), "", "backbone.")
    _add_blocks(names, keys, "blocks.", "backbone.blocks.")
    names.unused.update(key for key in keys if key.startswith("head."))
    return names


def as_linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """1x1 convolutions that are Linear layers here lose their two spatial axes."""
    linear = name.endswith(("dim_project.0.weight", "CatConv.weight"))
    return tensor.flatten(1) if linear and tensor.ndim == 4 else tensor
