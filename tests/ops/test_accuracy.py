"""Values and gradients of the ops against their float64 definitions.

The bound of a result is a number of ulps of its dtype, derived in the registry; the rule for gradients is
that of `ifdd_kernels.testing.check_against_float64`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import Entry, Sample
from ifdd_kernels.testing import precision_error_bound, relative_error
from ops.backend_checks import check_precision, definition, lowered
from ops.cases import gradients, samples, with_gradients

LOW_PRECISION = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("entry", "sample"), samples(torch.float64, differentiable=True))
def test_backward_op_is_the_derivative_of_the_definition(entry: Entry, sample: Sample, backend: str) -> None:
    """Of the native kernels, and of the hand-derived reference that runs wherever there are none."""
    op = entry.operator.overload(backend) if entry.operator else entry.overload
    args = with_gradients(sample)
    generator = torch.Generator().manual_seed(3)
    exact = definition(entry)(*args)
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
    check_precision(entry, lowered(entry, sample.label, dtype), op)


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
