"""Emulated ops against their float64 definitions.

Bounds are those of ``tests/ops/test_accuracy.py``: the registry's number of ulps, by the rule of
`ifdd_kernels.testing.check_against_float64`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emulator.build import EmulatedOp
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.testing import check_against_float64, poisoned_memory, precision_error_bound
from ops.cases import gradients

SEEDS = (0, 1, 2, 3)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    ulps: float | None = None,
    moved: bool = False,
) -> None:
    """Forward and backward of an emulated op: everything written, close to float64, equal bits for all seeds.

    Args:
        op: the op to run.
        args: its arguments, in the dtype to test.
        seeds: schedules to run.
        shared_bytes: shared memory of the emulated device, where a launcher chooses by it.
        ulps: bound instead of the registry's, with the reason where it is given.
        moved: every tensor is a view that begins one element behind a 16-byte boundary.
    """
    entry = REGISTRY[op.operator.name]
    bound = entry.ulps if ulps is None else ulps
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
        grads = outputs_of(op.backward(*map(place, given)))
    return [*outputs, *grads]


def _compare(op: EmulatedOp, args: tuple[Any, ...], results: list[Tensor], ulps: float) -> None:
    entry = REGISTRY[op.operator.name]
    wide = tuple(map(_wide, args))
    exact = list(outputs_of(entry.reference(*wide)))
    count, wiring = len(exact), op.operator.wiring
    dtypes = [out.dtype for out in outputs_of(op.operator.fake(*args))]
    result_dtype = None
    if wiring is not None:
        cotangents = entry.differentiable(tuple(cotangents_of(results[:count])))
        floating = [place for place, arg in enumerate(wide) if isinstance(arg, Tensor) and arg.requires_grad]
        grads = gradients(entry, tuple(exact), wide, [c.double() for c in cotangents])
        wanted = dict(zip(floating, grads, strict=True))
        found = dict(zip(wiring.inputs, results[count:], strict=True))
        # Absent arguments, and indexes, have an empty gradient.
        assert all(not grad.numel() for place, grad in found.items() if place not in wanted)
        compared = [place for place in wiring.inputs if place in wanted]
        results = results[:count] + [found[place] for place in compared]
        exact += [wanted[place] for place in compared]
        dtypes += [args[place].dtype for place in compared]
        # A gradient may start from a result of the op's dtype even where it is wider itself.
        flowing = [out.dtype for out in entry.differentiable(tuple(results[:count]))]
        result_dtype = max(flowing, key=lambda dtype: torch.finfo(dtype).eps)
    check_against_float64(
        results,
        exact,
        partial(precision_error_bound, factor=ulps),
        results=count,
        dtypes=dtypes,
        result_dtype=result_dtype,
    )
