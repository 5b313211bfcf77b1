"""Registry samples as pytest parameters, and the pieces several tests of ops share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.backends import can_run
from ifdd_kernels.registry import REGISTRY, Entry, Maker, Sample


def nightly(*values: Any, id: str | None = None, when: bool = True) -> Any:
    """A test's parameters that `make test` leaves out."""
    return pytest.param(*values, id=id, marks=pytest.mark.nightly if when else ())


def everyday(entry: Entry, count: int = 2) -> set[str]:
    """Labels of two samples of an op, for what does not depend on sizes: a strided one, and the first."""
    labels = [sample.label for sample in entry.samples(Maker(torch.float32, "meta"))]
    strided = next((label for label in labels[1:] if "strided" in label), labels[1])
    return {strided, labels[0]} if count == 2 else {strided}


def samples(
    dtype: torch.dtype,
    *,
    differentiable: bool = False,
    composed: bool = True,
    native: bool = False,
    few: int = 0,
) -> list[Any]:
    """(entry, sample) of every op.

    ``differentiable`` leaves out ops without a backward, ``composed=False`` those that decompose into
    others, ``native`` those without a native CPU kernel; ``few`` leaves others than that many of
    :func:`everyday` to the night.
    """
    cases = []
    for entry in REGISTRY.values():
        if entry.operator is None and (native or not composed):
            continue
        if differentiable and entry.operator is not None and entry.operator.backward is None:
            continue
        if native and not can_run(entry.name, "native"):
            continue
        always = everyday(entry, few)
        cases += [
            nightly(entry, sample, id=f"{entry.name}-{sample.label}", when=few and sample.label not in always)
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


def forward_and_backward(
    op: str, args: Sequence[Any], grads: Sequence[Tensor], backend: str = "native"
) -> tuple[Tensor, ...]:
    """Results and all gradients, straight from the registered ops; ``grads``: of the first results."""
    operator = OPERATORS[op]
    assert operator.wiring is not None
    results = outputs_of(operator.overload(backend)(*args))
    taken = operator.wiring.arguments(args, results, grads)
    return *results, *outputs_of(operator.overload(backend, backward=True)(*taken))
