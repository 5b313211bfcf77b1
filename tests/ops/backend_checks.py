"""A backend's kernels against the float64 definition, on the CPU (interpreter) or on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import Entry, Maker, Sample
from ifdd_kernels.testing import (
    full_float32,
    poisoned_memory,
    precision_error_bound,
    relative_error,
    unwritten_fraction,
)
from ops.cases import gradients

#: Gradients may err this much more than results: each is a product of two results of that accuracy, summed
#: over one more axis.
GRADIENT_FACTOR = 4

#: Times the error of the definition in the tested precision that is always allowed where it is asked: sums in
#: another order, and factors of products rounded once more.
EAGER_FACTOR = 4

#: Where results are 16-bit, float32 arithmetic hides below their one rounding (half an eps), whatever the
#: registry allows float32. On its samples Triton's results err by at most 0.46 eps, gradients by 3.7.
HALF_ROUNDINGS = 2


def check_backend(entry: Entry, sample: Sample, backend: str = "triton") -> None:
    """Values and gradients of a backend against the op's definition in float64, see :func:`check_call`."""
    assert entry.operator is not None
    check_call(entry, sample, entry.operator.overload(backend))


def check_call(
    entry: Entry, sample: Sample, call: Callable[..., Any], against_eager: bool = False
) -> tuple[Tensor, ...]:
    """Values and gradients of a call against the op's definition in float64, on the arguments' device.

    Bounds are the registry's (roundings of the result's dtype relative to the largest value); with
    ``against_eager``, for sums longer than those of the registry's samples, at least :data:`EAGER_FACTOR`
    times the error of the definition in the precision that is tested. Memory the call allocates is full of
    NaN, so that what it forgets to write shows; so is all memory around its arguments, so that what it
    should not read does. float32 means float32, not TF32.

    Returns:
        The results and the gradients.
    """
    with full_float32():
        args = tuple(_leaf(_among_nans(arg)) for arg in sample.args)
        with poisoned_memory():
            result = call(*args)
        outputs = outputs_of(result)
        differentiable = entry.differentiable(result) if has_gradients(entry) else []
        cotangents = [_cotangent(out) for out in differentiable]
        actual: list[Tensor] = []
        if cotangents:
            with poisoned_memory():
                actual = gradients(entry, result, args, cotangents)
        exact, expected = _definition(
            entry, tuple(_wide(arg) for arg in args), [c.double() for c in cotangents]
        )
        if against_eager:
            eager = _errors(
                *_definition(entry, tuple(_leaf(arg) for arg in args), cotangents), exact, expected
            )
        else:
            eager = _errors(exact, expected, exact, expected)
    _compare_results(entry, outputs, exact, args[0].dtype, eager[0])
    if cotangents:
        _compare_gradients(entry, actual, expected, differentiable[0].dtype, eager[1])
    return (*(out.detach() for out in outputs), *actual)


def has_gradients(entry: Entry) -> bool:
    """Whether gradients flow through an op; those that are composed of others all have some."""
    return entry.operator is None or entry.operator.backward is not None


def _definition(
    entry: Entry, args: tuple[Any, ...], cotangents: list[Tensor]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Results and gradients of the definition, differentiated by PyTorch, in the arguments' precision."""
    result = entry.reference(*args)
    return outputs_of(result), gradients(entry, result, args, cotangents) if cotangents else []


def _errors(
    outputs: tuple[Tensor, ...], grads: list[Tensor], exact: tuple[Tensor, ...], expected: list[Tensor]
) -> tuple[list[float], list[float]]:
    """Of results, relative to their largest value, and of gradients, relative to :func:`_sizes`."""
    found = [relative_error(got, wanted) for got, wanted in zip(outputs, exact, strict=True)]
    sizes = _sizes(grads, expected)
    return found, [
        _largest_error(got, wanted) / size for got, wanted, size in zip(grads, expected, sizes, strict=True)
    ]


def _cotangent(out: Tensor) -> Tensor:
    generator = torch.Generator(out.device).manual_seed(5)
    values = torch.randn(out.shape, generator=generator, dtype=torch.float64, device=out.device)
    moved: Tensor = _among_nans(values.to(out.dtype))
    return moved


def lowered(entry: Entry, label: str, dtype: torch.dtype, device: str = "cpu") -> Sample:
    """A sample of the registry in a dtype; parameters and positions stay as wide as the ops promise."""
    return next(s for s in entry.samples(Maker(dtype, device, seed=11)) if s.label == label)


def _real(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _among_nans(arg: Any) -> Any:
    """The same values, strides and alignment in memory that is NaN before, behind and between them."""
    if not _real(arg) or not arg.numel():
        return arg
    margin = 4096 + arg.data_ptr() % 64 // arg.element_size()
    last = sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=True))
    memory = torch.full((last + 2 * margin,), torch.nan, dtype=arg.dtype, device=arg.device)
    moved = memory.as_strided(arg.shape, arg.stride(), margin)
    once = [slice(1) if stride == 0 else slice(None) for stride in arg.stride()]  # a broadcast axis
    moved[tuple(once)].copy_(arg.detach()[tuple(once)])
    return moved


def _leaf(arg: Any) -> Any:
    return arg.detach().requires_grad_() if _real(arg) else arg


def _wide(arg: Any) -> Any:
    return _leaf(arg.detach().double()) if _real(arg) else arg


def _roundings(entry: Entry, dtype: torch.dtype) -> float:
    return min(entry.roundings, HALF_ROUNDINGS) if dtype.itemsize == 2 else entry.roundings


def _allowed(eager: float, what: str) -> float:
    """For the definition's own error in the tested precision; where that is infinite, nothing could fail."""
    assert math.isfinite(eager), f"{what}: the definition's own error in this precision is {eager}"
    return EAGER_FACTOR * eager


def _compare_results(
    entry: Entry,
    actual: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    dtype: torch.dtype,
    eager: list[float],
) -> None:
    """Statistics too: the backward starts from them.

    Where a product of 16-bit inputs is rounded to float16 on its way, float32 statistics err by that too:
    at most 0.18 eps of float16 on the registry's samples (the log_sum of pooled_attention).
    """
    for place, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == wanted.shape, f"result {place}: {tuple(got.shape)}"
        assert got.is_contiguous(), f"result {place} is not contiguous, as the fake promises"
        if not got.is_floating_point():
            assert torch.equal(got, wanted), f"result {place}"
        elif wanted.numel():
            assert unwritten_fraction(got) == 0, f"result {place} has unwritten values"
            error = relative_error(got, wanted)
            bound = precision_error_bound(got.dtype, _roundings(entry, got.dtype))
            if dtype in (torch.float16, torch.bfloat16):
                bound = max(bound, torch.finfo(torch.float16).eps / 2)
            bound = max(bound, _allowed(eager[place], f"result {place}"))
            assert error <= bound, f"result {place}: relative error {error:.2e}, allowed {bound:.2e}"


def _compare_gradients(
    entry: Entry,
    actual: list[Tensor],
    expected: list[Tensor],
    result_dtype: torch.dtype,
    eager: list[float],
) -> None:
    sizes = _sizes(actual, expected)
    for place, (got, wanted, size) in enumerate(zip(actual, expected, sizes, strict=True)):
        assert got.shape == wanted.shape, f"gradient {place}: {tuple(got.shape)}"
        if not wanted.numel():
            continue
        assert unwritten_fraction(got) == 0, f"gradient {place} has unwritten values"
        coarser = max(result_dtype, got.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        error = _largest_error(got, wanted) / size
        bound = GRADIENT_FACTOR * precision_error_bound(coarser, _roundings(entry, coarser))
        bound = max(bound, _allowed(eager[place], f"gradient {place}"))
        assert error <= bound, f"gradient {place}: relative error {error:.2e}, allowed {bound:.2e}"


def _sizes(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    """What errors of gradients are relative to: the largest value, or a hundredth of the case's.

    Gradients that vanish by symmetry hold rounding of the largest gradient of the case. Below the smallest
    normal number a dtype is as coarse as there.
    """
    own = [float(g.abs().max()) if g.numel() else 0.0 for g in expected]
    largest = max(own, default=0.0)
    return [
        max(size, 1e-2 * largest, torch.finfo(got.dtype).smallest_normal)
        for size, got in zip(own, actual, strict=True)
    ]


def _largest_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max()) if wanted.numel() else 0.0
