"""Registry samples as pytest parameters, and the pieces several tests of ops share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels.backends import can_run
from ifdd_kernels.registry import REGISTRY, Entry, Maker, Sample


def samples(
    dtype: torch.dtype, *, differentiable: bool = False, composed: bool = True, native: bool = False
) -> list[Any]:
    """(entry, sample) of every op.

    ``differentiable`` leaves out ops without a backward, ``composed=False`` those that decompose into
    others, ``native`` those without a native CPU kernel.
    """
    cases = []
    for entry in REGISTRY.values():
        if entry.operator is None and (native or not composed):
            continue
        if differentiable and entry.operator is not None and entry.operator.backward is None:
            continue
        if native and not can_run(entry.name, "native"):
            continue
        cases += [
            pytest.param(entry, sample, id=f"{entry.name}-{sample.label}")
            for sample in entry.samples(Maker(dtype))
        ]
    return cases


def with_gradients(sample: Sample) -> tuple[Any, ...]:
    """The sample's arguments, floating tensors detached and requiring gradients."""
    return tuple(
        arg.detach().clone().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
        for arg in sample.args
    )


def gradients(entry: Entry, result: Any, args: tuple[Any, ...], cotangents: list[Tensor]) -> list[Tensor]:
    """Gradients of every floating argument for given cotangents of the differentiable outputs."""
    inputs = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
    outputs = entry.differentiable(result)
    return list(torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, materialize_grads=True))
