"""Files of weights: reading them, and comparing what they hold with what is wanted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ifdd.checkpoint.not_weights import what_it_is
from ifdd.checkpoint.wrappers import Weights as Weights
from ifdd.checkpoint.wrappers import describe_entries, unwrap
from ifdd.training.folder import BEST, EXPORTED, LAST

PathLike = str | os.PathLike[str]

TRAINING_RECORD = "ifdd"
"""The entry of this package's training checkpoints that holds settings, class names and scores."""


class CheckpointError(ValueError):
    """A weights file that is missing, damaged, foreign, or does not fit; the message begins with its path."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights, on the CPU.

    ``weights``: named tensors without the wrappers of training scripts; ``place``: the wrappers, for a
    message (empty where there were none); ``left_out``: entries beside them that were not taken; ``header``:
    metadata of a safetensors file; ``training``: settings and scores of one of this package's training
    checkpoints, with its ``epoch`` (from 0), or None.
    """

    path: Path
    weights: Weights
    place: str = ""
    left_out: tuple[str, ...] = ()
    header: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] | None = None

    def first_names(self, limit: int = 5) -> str:
        """The first names of weights with their shapes, for an error message."""
        return describe_entries(self.weights, limit)


def read_weights(path: PathLike) -> Weights:
    """Named tensors of a safetensors file or of a file `torch.save` wrote, on the CPU.

    What training scripts put around them is removed (`ifdd.checkpoint.wrappers`): outer entries such as
    `state_dict` or `ema`, prefixes such as `module.`, `model.` or `_orig_mod.`, nested and combined. Only
    tensors are unpickled, never code.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no named tensors.
    """
    return read_file(path).weights


def read_file(path: PathLike) -> WeightsFile:
    """Reads a file of weights; its first bytes decide the format, not the suffix of its name.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no named tensors.
    """
    path = Path(path)
    header: dict[str, str] = {}
    training: dict[str, Any] | None = None
    content: Any
    if _is_safetensors(path):
        content, header = _read_safetensors(path)
    else:
        content = read_pickle(path)
        if isinstance(content, Mapping) and isinstance(content.get(TRAINING_RECORD), Mapping):
            training = {**content[TRAINING_RECORD], "epoch": content.get("epoch")}
    found = unwrap(content)
    if found is None:
        raise CheckpointError(f"{path}: holds no named tensors, but {describe_entries(content)}")
    return WeightsFile(path, found.weights, found.place, found.left_out, header, training)


def read_pickle(path: PathLike) -> Any:
    """The content of a file that `torch.save` wrote: tensors and plain types on the CPU, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds other objects.
    """
    path = Path(path)
    _first_bytes(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a damaged file makes the unpickler raise.
        reason = what_it_is(path) or _reason(error)
        raise CheckpointError(f"{path}: not a readable weights file: {reason}") from error


def load_weights(
    model: nn.Module, weights: Mapping[str, torch.Tensor], path: str, missing_allowed: set[str] | None = None
) -> None:
    """Fills a model; a :class:`CheckpointError` names what is missing, unknown or of another shape."""
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights) - (missing_allowed or set()))
    unknown = sorted(set(weights) - set(wanted))
    shapes = wrong_shapes(weights, wanted)
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{path}: weights do not fit the model: missing {listing(missing)}; "
            f"unknown {listing(unknown)}; of other shapes {listing(shapes)}"
        )
    model.load_state_dict(dict(weights), strict=False)


def wrong_shapes(weights: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """A phrase for each of the weights that has another shape than the wanted one."""
    return [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]


def listing(names: Sequence[str], limit: int = 12) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(names[:limit]) or "none"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _is_safetensors(path: Path) -> bool:
    """Eight bytes with the length of the header, then its JSON; a name says it only where the file cannot."""
    start = _first_bytes(path)
    if start[8:9] == b"{":
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80"))


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = what_it_is(path) or f"damaged or not a safetensors file: {error}"
        raise CheckpointError(f"{path}: not a readable weights file: {reason}") from error


def _what_instead(path: Path) -> str:
    if not path.exists():
        return "no such file"
    if not path.is_dir():
        return "not a file"
    inside = next((path / name for name in (EXPORTED, BEST, LAST) if (path / name).is_file()), None)
    return "is a folder" + ("" if inside is None else f"; the weights in it are {inside}")


def _first_bytes(path: Path, count: int = 64) -> bytes:
    """The beginning of a file, unless it shows that something else lies in the place of weights."""
    if not path.is_file():
        raise CheckpointError(f"{path}: {_what_instead(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(count)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a Git LFS pointer instead of the file it stands for; run `git lfs pull`"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path}: a web page instead of a weights file; download it anew")
    return start


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, EOFError) or text.startswith("unexpected EOF"):
        return "its end is missing; copy or download it anew"
    if "Unsupported global" in text or "TorchScript" in text:
        # Training scripts save their own objects beside the weights, or the network itself.
        return (
            "it holds Python objects beside tensors, which are not unpickled; if you trust it, save "
            'its weights alone: torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW_FILE)'
        )
    if isinstance(error, (LookupError, pickle.UnpicklingError)) or not text:
        # Their text is a byte of the file, the unpickler's trouble, or advice that does not help here.
        return f"damaged, or not written by torch.save ({type(error).__name__})"
    return text.splitlines()[0]
