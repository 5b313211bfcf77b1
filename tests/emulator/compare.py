"""Emulated ops against their float64 definitions.

Bounds are those of ``tests/ops/test_accuracy.py``: the registry's number of roundings for values, four times
that for gradients, which are products of two results of that accuracy summed over one more axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from emulator.build import EmulatedOp
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.testing import poisoned_memory, precision_error_bound, relative_error, unwritten_fraction

SEEDS = (0, 1, 2, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADIENT_FACTOR = 4


def registry_sample(name: str, label: str, dtype: torch.dtype, seed: int = 11) -> Sample:
    """A sample of the registry in a dtype, parameters and positions in float32."""
    return next(s for s in REGISTRY[name].samples(Maker(dtype, seed=seed)) if s.label == label)


def labels(name: str) -> list[str]:
    """The registry's samples of an op."""
    return [sample.label for sample in REGISTRY[name].samples(Maker(torch.float32))]


def _wide(arg: Any) -> Any:
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return arg.detach().double().requires_grad_()
    return arg


def cotangents_of(outputs: Sequence[Tensor], seed: int = 5) -> list[Tensor]:
    """Random gradients of outputs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]


def check(
    op: EmulatedOp,
    args: tuple[Any, ...],
    *,
    seeds: Sequence[int] = SEEDS,
    shared_bytes: int | None = None,
    roundings: float | None = None,
    moved: bool = False,
) -> None:
    """Forward and backward of an emulated op: everything written, close to float64, equal bits for all seeds.

    Args:
        op: the op to run.
        args: its arguments, in the dtype to test.
        seeds: schedules to run.
        shared_bytes: shared memory of the emulated device, where a launcher chooses by it.
        roundings: bound instead of the registry's, with the reason where it is given.
        moved: every tensor is a view that begins one element behind a 16-byte boundary.
    """
    entry = REGISTRY[op.operator.name]
    bound = entry.roundings if roundings is None else roundings
    first: list[Tensor] = []
    for seed in seeds:
        op.library.configure(seed, **({} if shared_bytes is None else {"shared_bytes": shared_bytes}))
        results = _run(op, args, moved)
        if not first:
            first = results
            _compare(op, args, results, bound)
        for place, (result, before) in enumerate(zip(results, first, strict=True)):
            assert torch.equal(result, before), f"result {place} depends on the schedule (seed {seed})"


def _moved(arg: Any) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    view = arg.new_empty(arg.numel() + 1)[1:].view(arg.shape)
    view.copy_(arg)
    assert view.numel() < 2 or view.data_ptr() % 16 == view.element_size()
    return view


def _run(op: EmulatedOp, args: tuple[Any, ...], moved: bool) -> list[Tensor]:
    """Outputs, then gradients."""
    place: Callable[[Any], Any] = _moved if moved else lambda arg: arg
    with poisoned_memory():
        outputs = outputs_of(op.forward(*map(place, args)))
        if op.operator.wiring is None:
            return list(outputs)
        given = op.operator.wiring.arguments(args, outputs, cotangents_of(outputs))
        gradients = outputs_of(op.backward(*map(place, given)))
    return [*outputs, *gradients]


def _compare(op: EmulatedOp, args: tuple[Any, ...], results: list[Tensor], roundings: float) -> None:
    entry = REGISTRY[op.operator.name]
    wide = tuple(map(_wide, args))
    exact = outputs_of(entry.reference(*wide))
    outputs, gradients = results[: len(exact)], results[len(exact) :]
    for place, (got, wanted) in enumerate(zip(outputs, exact, strict=True)):
        assert got.shape == wanted.shape, f"output {place}"
        if not got.is_floating_point():
            assert torch.equal(got, wanted), f"output {place}"
            continue
        assert unwritten_fraction(got) == 0, f"output {place}"
        error = relative_error(got, wanted.detach())
        assert error <= precision_error_bound(got.dtype, roundings), f"output {place}: {error}"
    if op.operator.wiring is None:
        return
    flowing = entry.differentiable(exact)
    chosen = entry.differentiable(tuple(cotangents_of(outputs)))
    inputs = [arg for arg in wide if isinstance(arg, Tensor) and arg.requires_grad]
    grads = iter(
        torch.autograd.grad(
            flowing, inputs, [c.double() for c in chosen], allow_unused=True, materialize_grads=True
        )
    )
    exact_grads = [next(grads) if isinstance(a, Tensor) and a.requires_grad else None for a in wide]
    largest = max((float(g.abs().max()) for g in exact_grads if g is not None and g.numel()), default=0.0)
    # A gradient may start from a result of the op's dtype even where it is wider itself.
    result_eps = max(torch.finfo(out.dtype).eps for out in entry.differentiable(tuple(outputs)))
    for place, got in zip(op.operator.wiring.inputs, gradients, strict=True):
        wanted = exact_grads[place]
        if wanted is None or wanted.numel() == 0:
            assert got.numel() == 0, f"gradient {place}"
            continue
        assert got.shape == wanted.shape, f"gradient {place}"
        assert unwritten_fraction(got) == 0, f"gradient {place}"
        limit = GRADIENT_FACTOR * roundings * max(result_eps, torch.finfo(got.dtype).eps)
        # Gradients that vanish by symmetry hold rounding of the largest gradient of the case.
        size = max(float(wanted.abs().max()), 1e-2 * largest)
        error = float((got.double() - wanted).abs().max())
        assert error <= limit * size, f"gradient {place}: {error / size}"
