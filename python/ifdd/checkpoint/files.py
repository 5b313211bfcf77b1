"""Files of weights: reading them, and comparing what they hold with what is wanted."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

Weights = dict[str, torch.Tensor]
PathLike = str | os.PathLike[str]


class CheckpointError(ValueError):
    """A weights file that is missing, damaged, foreign, or does not fit; the message begins with its path."""


def read_weights(path: PathLike) -> Weights:
    """Named tensors of a `.safetensors` file or of a file `torch.save` wrote, on the CPU.

    The wrappers training scripts put around them, an outer `state_dict` or `model` entry and a `module.`
    prefix of every name, are removed. Only tensors are unpickled, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or holds no named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
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


def read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Tensors and metadata of a file, or a :class:`CheckpointError`."""
    _must_exist(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file: {error}") from error


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


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")


def _unwrap(content: object, path: Path) -> Weights:
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no named tensors")
    wrong = [name for name, tensor in content.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise CheckpointError(f"{path}: entries that are not tensors: {listing(sorted(map(str, wrong)))}")
    prefix = "module."
    if all(name.startswith(prefix) for name in content):
        return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)
