"""Removes the wrappers of training scripts: outer entries, prefixes of names, other tensors.

A file may hold several sets of weights (the trained ones and their moving average, a student and a teacher).
Each mapping that holds tensors, divided by the known prefixes of its names, is a candidate; of those of the
size of a network a moving average is taken before the weights it averages, since that is what such trainings
evaluate and publish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

Weights = dict[str, torch.Tensor]

ANYWHERE = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a name that parallel training, compilation and recomputation put in, at any place of it."""
PREFIXES = frozenset(
    {
        *("model", "net", "network", "ema_model", "model_ema", "ema", "online_model", "averaged_model"),
        *("student", "teacher", "recogniser", "recognizer", "wrapped"),
    }
)
"""First parts of names under which a training module keeps its network."""
_USUAL = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "student",
)
_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow)(_|$)")
_NO_WEIGHTS = re.compile(r"^(optim|.*_?sched|scaler|amp|callbacks|loops|hyper_parameters|averaging_state)")
_DEPTH = 5


class Unwrapped(NamedTuple):
    """Named tensors, where in the file they were, and the entries beside them that were left out."""

    weights: Weights
    place: str
    left_out: tuple[str, ...]


class _Candidate(NamedTuple):
    path: tuple[str, ...]
    weights: Weights
    left_out: tuple[str, ...]

    @property
    def place(self) -> str:
        return " / ".join(self.path)

    def rank(self) -> tuple[bool, int]:
        """Smaller is better: averages, then the usual names in their order, then the order in the file."""
        average = any(_AVERAGE.search(part.rstrip(".").lower()) for part in self.path)
        usual = min((_USUAL.index(part) for part in self.path[:1] if part in _USUAL), default=len(_USUAL))
        return not average, usual


def unwrap(content: object) -> Unwrapped | None:
    """The weights inside the content of a file, or None where there are no named tensors.

    Args:
        content: what `torch.load` or a safetensors file gave.
    """
    candidates = [part for candidate in _mappings(content, ()) for part in _by_prefix(candidate)]
    if not candidates:
        return None
    largest = max(len(candidate.weights) for candidate in candidates)
    best = min(
        (candidate for candidate in candidates if 2 * len(candidate.weights) >= largest),
        key=_Candidate.rank,
    )
    return Unwrapped(best.weights, best.place, best.left_out)


def describe_entries(content: object, limit: int = 5) -> str:
    """The first entries of a file with their types or shapes, for an error message."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing"
    shown = [f"{key} {_kind(value)}" for key, value in list(content.items())[:limit]]
    more = len(content) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _kind(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"[{type(value).__name__}]"


def _mappings(content: object, path: tuple[str, ...]) -> Iterator[_Candidate]:
    if not isinstance(content, Mapping) or len(path) > _DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors:
        rest = tuple(str(key) for key in content if key not in tensors)
        yield _Candidate(path, tensors, rest)
    for key, value in content.items():
        if isinstance(key, str) and not _NO_WEIGHTS.match(key):
            yield from _mappings(value, (*path, key))


def _by_prefix(candidate: _Candidate) -> Iterator[_Candidate]:
    """The candidate without the known prefixes of its names; one for each prefix where there are several."""
    weights = {_without_inner_wrappers(name): tensor for name, tensor in candidate.weights.items()}
    if len(weights) < len(candidate.weights):
        # Two names would become one: these are parts of the network's own names.
        weights = candidate.weights
    groups: dict[str, Weights] = {}
    for name, tensor in weights.items():
        first, dot, rest = name.partition(".")
        prefix = first if dot and first in PREFIXES else ""
        groups.setdefault(prefix, {})[rest if prefix else name] = tensor
    for prefix, group in groups.items():
        others = tuple(
            f"{other}.*" if other else "names without prefix" for other in groups if other != prefix
        )
        part = _Candidate(candidate.path, group, (*candidate.left_out, *others))
        if prefix:
            yield from _by_prefix(part._replace(path=(*candidate.path, f"{prefix}.")))
        else:
            yield part


def _without_inner_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ANYWHERE) or name
