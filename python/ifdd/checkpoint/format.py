"""This package's checkpoints.

A checkpoint is one safetensors file. Its metadata hold the format and its version, the configuration, the
class names in order, the package version and a free JSON object, so the file alone is enough to predict with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ifdd.checkpoint.files import CheckpointError, PathLike, load_weights, read_safetensors
from ifdd.config import IFDDConfig
from ifdd.model import IFDD

FORMAT = "ifdd-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; `model` is in evaluation mode, `extra` is what `save_checkpoint` was given."""

    model: IFDD
    config: IFDDConfig
    class_names: tuple[str, ...]
    extra: dict[str, Any]


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
    names = checked_names(class_names, model.config.num_classes)
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
    weights, header = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not an IFDD checkpoint; {convert}")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: checkpoint format version {header.get('format_version')}; "
            f"this package reads {FORMAT_VERSION}"
        )
    try:
        config = IFDDConfig.from_dict(json.loads(header["config"]))
        names = checked_names(json.loads(header["class_names"]), config.num_classes)
        extra = json.loads(header["extra"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint metadata: {error}") from error
    model = IFDD(config)
    load_weights(model, weights, str(path))
    model.class_names = names
    return Checkpoint(model.to(device).eval(), config, names, extra)


def checked_names(names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names of the classes, or a ValueError that says what is wrong with them."""
    several = isinstance(names, Sequence) and not isinstance(names, str)
    if not several or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names must be a sequence of strings; got {names!r}")
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(
            f"class_names must be {num_classes} distinct names, one per logit; got {list(names)}"
        )
    return tuple(names)


def _package_version() -> str:
    try:
        return metadata.version("ifdd-kernels")
    except metadata.PackageNotFoundError:
        return "uninstalled"
