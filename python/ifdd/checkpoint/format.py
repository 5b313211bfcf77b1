"""This package's checkpoints.

A checkpoint is one safetensors file. Its metadata hold the format and its version, the configuration, the
class names in order, the package version and a free JSON object, so the file alone is enough to predict with.
The training checkpoints of a run hold the same and are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ifdd.checkpoint.files import CheckpointError, PathLike, WeightsFile, load_weights, read_file
from ifdd.checkpoint.kinds import NAMES_OF_KINDS, kind_of, unknown_weights
from ifdd.checkpoint.training import TrainingRecord
from ifdd.config import IFDDConfig
from ifdd.model import IFDD
from ifdd.whole import part_of
from ifdd_kernels import __version__

FORMAT = "ifdd-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: the network, in evaluation mode.
        config: its configuration.
        class_names: one name per logit, in order.
        extra: the object given to `save_checkpoint`, or the settings and scores in a training checkpoint.
        origin: which weights these are, for example `weights, epoch 3 of 40`.
    """

    model: IFDD
    config: IFDDConfig
    class_names: tuple[str, ...]
    extra: dict[str, Any]
    origin: str = "weights"


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
        "package_version": __version__,
        "extra": extra_json,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path = Path(path)
    try:
        with part_of(path) as part:
            part.touch()
            mode = part.stat().st_mode
            save_file(tensors, part, header)
            part.chmod(mode)  # which safetensors makes readable for its owner alone
    except SafetensorError as error:
        # safetensors reports a missing folder or a full disk in its own type.
        raise OSError(f"{path}: cannot write the checkpoint: {error}") from error


def load_checkpoint(path: PathLike, device: str | torch.device = "cpu") -> Checkpoint:
    """A network with its class names from a file; the model is in evaluation mode on `device`.

    Reads what `save_checkpoint` wrote, and the `last.ckpt` and `best.ckpt` of a training (of one with a
    moving average of the weights: the average). `Checkpoint.origin` says which weights these are.

    Args:
        path: the file.
        device: where the network goes.

    Returns:
        `Checkpoint`, its network in float32.

    Raises:
        CheckpointError: the file is missing, truncated, not a checkpoint, of a newer format, or inconsistent.
    """
    file = read_file(path)
    own = settings_of(file)
    if own is None:
        raise CheckpointError(f"{file.path}: not an IFDD checkpoint: {_what_is_missing(file)}")
    model = IFDD(own.config)
    load_weights(model, file.weights, str(file.path))
    model.class_names = own.class_names
    return Checkpoint(model.to(device).eval(), own.config, own.class_names, own.extra, own.origin)


@dataclass(frozen=True)
class Settings:
    """The settings in one of this package's own files, beside its weights."""

    config: IFDDConfig
    class_names: tuple[str, ...]
    extra: dict[str, Any]
    origin: str


def settings_of(file: WeightsFile) -> Settings | None:
    """Network, classes and origin of a file that this package wrote; None for any other file.

    Raises:
        CheckpointError: its metadata are of a newer format, incomplete or inconsistent.
    """
    try:
        if file.training is not None:
            record = TrainingRecord.of(file.training)
            config, names, extra = record.network, record.class_names, record.extra()
            names = checked_names(names, config.num_classes)
        elif file.header.get("format") == FORMAT:
            version = file.header.get("format_version")
            if version != str(FORMAT_VERSION):
                raise CheckpointError(
                    f"{file.path}: checkpoint format version {version}; this package reads {FORMAT_VERSION}"
                )
            config = IFDDConfig.from_dict(json.loads(file.header["config"]))
            names = checked_names(json.loads(file.header["class_names"]), config.num_classes)
            extra = dict(json.loads(file.header["extra"]))
        else:
            return None
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file.path}: damaged checkpoint metadata: {error}") from error
    return Settings(config, names, extra, str(extra.get("weights") or "weights"))


def _what_is_missing(file: WeightsFile) -> str:
    """Why a file is not a checkpoint, and how to make one of it."""
    kind = kind_of(file.weights)
    if kind is None:
        return unknown_weights(file)
    return (
        f"{NAMES_OF_KINDS[kind]} without configuration and class names; "
        f"`ifdd convert {file.path} NEW.safetensors --classes NAME,NAME,...` writes one that has them"
    )


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
