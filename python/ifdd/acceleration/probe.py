"""A trial of a swapped module on random numbers, for classes that are edited where they lie.

SlowFast is not installed: its users work in a checkout of it, often a changed one. What a class computes
there cannot be told from its name and its settings.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ifdd.acceleration.classes import Accelerated, swap
from ifdd.modules.backbone import Grid

#: Answers by what runs: modules that differ in sizes alone are tried once, the first one, often the smallest.
Trials = dict[tuple[Any, ...], str]
_SIZES = frozenset({"dim", "dim_out", "num_heads", "scale", "training"})
#: In float64, relative to the largest value: far above rounding, far below any other function.
BOUND = 1e-9
#: Small, and even on all axes: strides of powers of two leave whole ratios of queries to keys.
GRID: Grid = (2, 8, 8)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_different(
    module: nn.Module, mixin: type[Accelerated], channels: int, trials: Trials, *, on_grid: bool
) -> str:
    """The reason why a module does not compute what it would as one of `mixin`, in words; empty if it does.

    Both run on a copy with random parameters, in float64 on the CPU, in evaluation and in training, with the
    same random draws. The module itself, its values and hooks, and PyTorch's generators stay as they are.

    Args:
        module: one that `mixin` could replace.
        mixin: the other forward.
        channels: of the tokens it takes.
        trials: of this call of `accelerate`, added to.
        on_grid: whether it takes the tokens' grid too.
    """
    key = (mixin, *_kind(module))
    if key not in trials:
        trials[key] = _try(module, mixin, channels, on_grid)
    return trials[key]


def _kind(module: nn.Module) -> tuple[Any, ...]:
    """The classes in a module, their names and settings without sizes, and the names of parameters."""
    own = vars(nn.Module()).keys()
    settings = {n: repr(v) for n, v in vars(module).items() if n not in own and n not in _SIZES}
    # Whether a block widens decides which of its layers run.
    widens = getattr(module, "dim", None) == getattr(module, "dim_out", None)
    parts = tuple((name, type(part)) for name, part in module.named_modules())
    parameters = tuple(name for name, _ in module.named_parameters())
    return widens, tuple(sorted(settings.items())), parts, parameters


def _try(module: nn.Module, mixin: type[Accelerated], channels: int, on_grid: bool) -> str:
    real = torch.utils._python_dispatch._disable_current_modes()
    quiet = torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]), torch.no_grad()
    with real, torch.device("cpu"), torch.inference_mode(False), quiet[0], quiet[1], quiet[2]:
        try:
            copied = _with_random_parameters(module)
            count = 1 + math.prod(GRID)
            x = torch.randn(2, count, channels, dtype=torch.float64)
            more = (list(GRID),) if on_grid else ()
            wanted = _run_twice(copied, x, *more)
            swap(copied, mixin, "reference")
            found = _run_twice(copied, x, *more)
        except Exception as error:  # their class is anybody's
            return f"could not be tried on random numbers: {type(error).__name__}: {error}"
    if any(not _same(*pair) for pair in zip(found, wanted, strict=True)):
        return "computes something else than SlowFast's class of this name"
    return ""


def _with_random_parameters(module: nn.Module) -> nn.Module:
    """A copy without hooks; no value of the module is read, so it may be on any device."""
    memo: dict[int, Any] = {}
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        memo |= {id(getattr(part, name)): OrderedDict() for name in _HOOKS}
    for tensor in (*module.parameters(), *module.buffers()):
        scale = tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.5
        values = torch.randn(tensor.shape, dtype=torch.float64, generator=generator) * scale
        memo[id(tensor)] = nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values
    return copy.deepcopy(module, memo)


def _run_twice(module: nn.Module, *arguments: Any) -> list[Any]:
    """Its results in evaluation and in training, tensors and grids."""
    results: list[Any] = []
    for training in (False, True):
        torch.manual_seed(1)
        out = module.train(training).forward(*arguments)
        results += out if isinstance(out, tuple) else [out]
    return results


def _same(found: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Tensor):
        return list(found) == list(wanted)
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= BOUND * wanted.abs().max())
