"""Weights on disk: this package's checkpoints, and those of the original implementation and of torchvision.

A checkpoint is one safetensors file. Its metadata hold the format and its version, the configuration, the
class names in order, the package version and a free JSON object, so the file alone is enough to predict with.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ifdd._original_names import NameMap, as_linear, original_names, torchvision_names
from ifdd.config import BACKBONES, IFDDConfig
from ifdd.model import IFDD

FORMAT = "ifdd-checkpoint"
FORMAT_VERSION = 1
Weights = dict[str, torch.Tensor]
HEAD_KEYS = ("head.classifier.weight", "head.classifier.bias")
#: Prefixes of the tensors `load_pretrained` takes.
PARTS = {"all": ("",), "backbone": ("embedding.", "backbone.", "pyramid.")}
TORCHVISION_DEPTHS = (1, 2, 11, 2)
PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A weights file that is missing, damaged, foreign, or does not fit; the message begins with its path."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; `model` is in evaluation mode, `extra` is what `save_checkpoint` was given."""

    model: IFDD
    config: IFDDConfig
    class_names: tuple[str, ...]
    extra: dict[str, Any]


class ConvertedWeights(NamedTuple):
    """Weights under this package's names, and the foreign names that were left out, sorted."""

    state_dict: Weights
    dropped: list[str]


@dataclass(frozen=True)
class PretrainedReport:
    """What `load_pretrained` found and did; `kind` is `checkpoint`, `original` or `torchvision`."""

    path: str
    kind: str
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]

    def __str__(self) -> str:
        names = {"checkpoint": "an IFDD checkpoint", "original": "weights of the original implementation"}
        kind = names.get(self.kind, "torchvision MViTv2 weights")
        return (
            f"{self.path}: {kind}; {len(self.dropped)} tensors of the file not used, "
            f"{len(self.untouched)} tensors of the model keep their initial values"
        )


def save_checkpoint(
    path: PathLike, model: nn.Module, class_names: Sequence[str], extra: Mapping[str, Any] | None = None
) -> None:
    """Writes `model` (an `IFDD`, compiled or not) to `path`; the file appears whole or not at all.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        model: an `ifdd.IFDD`.
        class_names: one distinct name per logit, in order.
        extra: any JSON object, for example metrics.

    Raises:
        TypeError: another kind of model.
        ValueError: class names that do not fit the model, or `extra` that JSON cannot hold.
        OSError: the file cannot be written.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, IFDD):
        raise TypeError(f"save_checkpoint: model must be an ifdd.IFDD; got {type(model).__name__}")
    names = _class_names(class_names, model.config.num_classes)
    try:
        extra_json = json.dumps(dict(extra or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_checkpoint: extra must be a JSON object: {error}") from error
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(model.config.to_dict()),
        "class_names": json.dumps(names),
        "package_version": _package_version(),
        "extra": extra_json,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, header)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:
        # safetensors reports a missing folder or a full disk in its own type.
        raise OSError(f"{path}: cannot write the checkpoint: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: PathLike, device: str | torch.device = "cpu") -> Checkpoint:
    """Reads what `save_checkpoint` wrote; the model is in evaluation mode on `device`.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, of a newer format, or inconsistent.
    """
    path = Path(path)
    convert = "`ifdd convert` makes checkpoints of published weights"
    if path.is_file() and path.suffix in (".pth", ".pt"):
        raise CheckpointError(f"{path}: not an IFDD checkpoint, which is a safetensors file; {convert}")
    weights, header = _read_safetensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not an IFDD checkpoint; {convert}")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: checkpoint format version {header.get('format_version')}; "
            f"this package reads {FORMAT_VERSION}"
        )
    try:
        config = IFDDConfig.from_dict(json.loads(header["config"]))
        names = _class_names(json.loads(header["class_names"]), config.num_classes)
        extra = json.loads(header["extra"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint metadata: {error}") from error
    model = IFDD(config)
    _load(model, weights, str(path))
    return Checkpoint(model.to(device).eval(), config, names, extra)


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


def read_weights(path: PathLike) -> Weights:
    """Named tensors of a `.safetensors` file or of a file `torch.save` wrote, on the CPU.

    The wrappers training scripts put around them, an outer `state_dict` or `model` entry and a `module.`
    prefix of every name, are removed. Only tensors are unpickled, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    _must_exist(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        if "Unsupported global" in str(error):
            # Training scripts save their own objects beside the weights.
            reason = (
                "it holds Python objects beside tensors, which are not unpickled; if you trust it, save "
                'its weights alone: torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW_FILE)'
            )
        else:
            # The text of a KeyError is a key: a byte of the file, for one that never was a pickle.
            text = "" if isinstance(error, KeyError) else str(error).strip()
            reason = text.splitlines()[0] if text else f"not written by torch.save ({type(error).__name__})"
        raise CheckpointError(f"{path}: not a readable weights file: {reason}") from error
    return _unwrap(content, path)


def load_pretrained(
    model: IFDD, path: PathLike, reset_head: bool = False, part: str = "all"
) -> PretrainedReport:
    """Loads weights of any known kind into `model`; the names inside decide the kind.

    Args:
        model: the network to fill.
        path: an IFDD checkpoint, weights of the original implementation, or torchvision's `mvit_v2_s`
            weights.
        reset_head: where the classifier in the file has another number of classes, keep the model's fresh
            one.
        part: `all`, or `backbone` to take embedding, backbone and pyramid only, so that networks that differ
            behind them can start from the same features.

    Raises:
        ValueError: an unknown part.
        CheckpointError: unreadable, of no known kind, or not fitting the model.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {tuple(PARTS)}; got {part!r}")
    weights = read_weights(path)
    known = set(model.state_dict())
    try:
        if "conv_proj.weight" in weights and "pos_encoding.class_token" in weights:
            kind = "torchvision"
            converted = from_torchvision_mvit(weights, model.config)
        elif "backbone.backbone.pos_encoding.class_token" in weights:
            kind = "original"
            converted = from_original(weights, "model")
        elif "backbone.class_token" in weights:
            kind, converted = "checkpoint", ConvertedWeights(weights, [])
        else:
            raise CheckpointError(
                f"{path}: neither an IFDD checkpoint, nor weights of the original implementation, "
                "nor torchvision MViTv2 weights"
            )
    except CheckpointError:
        raise
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from error
    state = dict(converted.state_dict)
    dropped = list(converted.dropped)
    if kind != "torchvision" and HEAD_KEYS[0] in state:
        classes = state[HEAD_KEYS[0]].shape[0]
        if classes != model.config.num_classes:
            if not reset_head:
                raise CheckpointError(
                    f"{path}: the classifier has {classes} classes, the model {model.config.num_classes}; "
                    "reset_head=True keeps a fresh classifier"
                )
            dropped += [key for key in HEAD_KEYS if state.pop(key, None) is not None]
    outside = {key for key in {*state, *known} if not key.startswith(PARTS[part])}
    dropped += [key for key in sorted(outside) if state.pop(key, None) is not None]
    untouched = sorted(known - set(state))
    allowed = set(untouched) if kind == "torchvision" else {*dropped, *outside}
    _load(model, state, str(path), missing_allowed=allowed)
    return PretrainedReport(str(path), kind, tuple(dropped), tuple(untouched))


def _convert(state_dict: Mapping[str, torch.Tensor], names: NameMap, what: str) -> ConvertedWeights:
    missing = sorted(set(names.required) - set(state_dict))
    unknown = sorted(set(state_dict) - set(names.required) - names.unused)
    if missing or unknown:
        raise KeyError(f"{what} weights: missing {_listing(missing)}; unknown {_listing(unknown)}")
    weights = {ours: as_linear(theirs, state_dict[theirs]) for theirs, ours in names.required.items()}
    return ConvertedWeights(weights, sorted(names.unused & set(state_dict)))


def _check_target(weights: Mapping[str, torch.Tensor], target: nn.Module, what: str) -> None:
    wanted = target.state_dict()
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        raise KeyError(
            f"{what} weights for {type(target).__name__}: missing {_listing(missing)}; "
            f"unknown {_listing(unknown)}"
        )
    shapes = _wrong_shapes(weights, wanted)
    if shapes:
        raise ValueError(f"{what} weights for {type(target).__name__}: {_listing(shapes)}")


def _load(
    model: IFDD, weights: Mapping[str, torch.Tensor], path: str, missing_allowed: set[str] | None = None
) -> None:
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights) - (missing_allowed or set()))
    unknown = sorted(set(weights) - set(wanted))
    shapes = _wrong_shapes(weights, wanted)
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{path}: weights do not fit the model: missing {_listing(missing)}; "
            f"unknown {_listing(unknown)}; of other shapes {_listing(shapes)}"
        )
    model.load_state_dict(dict(weights), strict=False)


def _wrong_shapes(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]


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


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    _must_exist(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error


def _unwrap(content: object, path: Path) -> Weights:
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no named tensors")
    wrong = [name for name, tensor in content.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: entries that are not tensors: {_listing(sorted(map(str, wrong)))}")
    prefix = "module."
    if all(name.startswith(prefix) for name in content):
        return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def _class_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a sequence of strings; got {names!r}")
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(
            f"class_names must be {num_classes} distinct names, one per logit; got {list(names)}"
        )
    return tuple(names)


def _listing(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _package_version() -> str:
    try:
        return metadata.version("ifdd-kernels")
    except metadata.PackageNotFoundError:
        return "uninstalled"
