"""Values and gradients of the ops against their float64 definitions.

The bound of a result is a number of roundings of its dtype, derived in the registry. Gradients may err
four times as much, since each is a product of two results of that accuracy summed over one more axis, and
in roundings of the op's result even where they are wider, since a backward may start from that result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import Entry, Maker, Sample
from ifdd_kernels.testing import poisoned_memory, precision_error_bound, relative_error, unwritten_fraction
from ops.cases import gradients, samples, with_gradients

GRADIENT_FACTOR = 4
LOW_PRECISION = [torch.float32, torch.bfloat16, torch.float16]


def _double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def convert(arg: Any) -> Any:
        return arg.detach().double().requires_grad_() if _differentiable(arg) else arg

    return tuple(convert(arg) for arg in args)


def _differentiable(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _exact(entry: Entry, args: tuple[Any, ...]) -> Any:
    """The definition, by PyTorch's own autograd; a composition is its own definition."""
    return entry.reference(*args) if entry.operator else entry.overload(*args)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("entry", "sample"), samples(torch.float64, differentiable=True))
def test_backward_op_is_the_derivative_of_the_definition(entry: Entry, sample: Sample, backend: str) -> None:
    """Of the native kernels, and of the hand-derived reference that runs wherever there are none."""
    op = entry.operator.overload(backend) if entry.operator else entry.overload
    args = with_gradients(sample)
    generator = torch.Generator().manual_seed(3)
    exact = _exact(entry, args)
    cotangents = [
        torch.randn(out.shape, generator=generator, dtype=out.dtype) for out in entry.differentiable(exact)
    ]
    expected = gradients(entry, exact, args, cotangents)
    actual = gradients(entry, op(*args), args, cotangents)
    largest = max((float(g.abs().max()) for g in expected if g.numel()), default=0.0)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.shape == wanted.shape
        if wanted.numel():
            assert float((got - wanted).abs().max()) <= 1e-12 * max(largest, 1e-300)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32, differentiable=True))
def test_precision(entry: Entry, sample: Sample, dtype: torch.dtype, backend: str) -> None:
    op = entry.operator.overload(backend) if entry.operator else entry.overload
    args = _lowered(entry, sample, dtype)
    with poisoned_memory():
        result = op(*args)
        cotangents = [
            torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(
                out.dtype
            )
            for out in entry.differentiable(result)
        ]
        grads = gradients(entry, result, args, cotangents)
    wide = _double(args)
    exact = _exact(entry, wide)
    exact_grads = gradients(entry, exact, wide, [c.double() for c in cotangents])

    for got, wanted in zip(entry.differentiable(result), entry.differentiable(exact), strict=True):
        assert unwritten_fraction(got) == 0
        assert relative_error(got, wanted) <= precision_error_bound(got.dtype, entry.roundings)
    largest = max((float(g.abs().max()) for g in exact_grads if g.numel()), default=0.0)
    result_eps = torch.finfo(entry.differentiable(result)[0].dtype).eps
    for got, wanted in zip(grads, exact_grads, strict=True):
        if wanted.numel():
            bound = GRADIENT_FACTOR * entry.roundings * max(result_eps, torch.finfo(got.dtype).eps)
            # Gradients that vanish by symmetry hold rounding of the largest gradient of the case.
            size = max(float(wanted.abs().max()), 1e-2 * largest)
            assert float((got.double() - wanted).abs().max()) <= bound * size


def _lowered(entry: Entry, sample: Sample, dtype: torch.dtype) -> tuple[Any, ...]:
    """The sample in ``dtype``: parameters and positions stay float32, as the ops promise to read them."""
    made = next(s for s in entry.samples(Maker(dtype, seed=11)) if s.label == sample.label)
    return tuple(arg.detach().requires_grad_() if _differentiable(arg) else arg for arg in made.args)


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32))
def test_strides_do_not_matter(entry: Entry, sample: Sample) -> None:
    """Any layout of the inputs gives the values of the contiguous one."""
    dense = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in sample.args)
    spread = tuple(_spread(arg) if isinstance(arg, Tensor) else arg for arg in sample.args)
    for got, wanted in zip(
        outputs_of(entry.overload(*spread)), outputs_of(entry.overload(*dense)), strict=True
    ):
        assert relative_error(got, wanted) <= precision_error_bound(torch.float32, 16)


def _spread(tensor: Tensor) -> Tensor:
    """The same values in memory with gaps, last axis outermost."""
    if tensor.dim() < 1:
        return tensor
    gaps = tensor.new_full((tensor.shape[-1], *tensor.shape[:-1], 2), 7)
    gaps[..., 1] = tensor.movedim(-1, 0)
    return gaps[..., 1].movedim(0, -1)
