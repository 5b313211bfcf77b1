"""A backend's kernels against the float64 definition, on the CPU (interpreter) or on a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ifdd_kernels.registry import Entry, Maker, Sample
from ifdd_kernels.testing import poisoned_memory, precision_error_bound, relative_error, unwritten_fraction
from ops.cases import differentiable_outputs, gradients, outputs_of

#: Gradients may err this much more than results: each is a product of two results of that accuracy, summed
#: over one more axis.
GRADIENT_FACTOR = 4

#: Where results are 16-bit, float32 arithmetic hides below their one rounding (half an eps), whatever the
#: registry allows float32. On its samples Triton's results err by at most 0.46 eps, gradients by 3.7.
HALF_ROUNDINGS = 2


def check_twin(entry: Entry, sample: Sample, twin: str = "triton") -> None:
    """Values and gradients of a twin against the op's definition in float64.

    Bounds are the registry's (roundings of the result's dtype relative to the largest value). Memory the
    twin allocates is full of NaN, so that what it forgets to write shows; so is all memory around its
    arguments, so that what it should not read does.
    """
    assert entry.operator is not None
    args = tuple(_leaf(_among_nans(arg)) for arg in sample.args)
    wide = tuple(_leaf(arg.detach().cpu().double()) if _real(arg) else _on_cpu(arg) for arg in args)
    exact = entry.reference(*wide)
    with poisoned_memory():
        result = entry.operator.overload(twin)(*args)
    _compare_results(entry, outputs_of(result), outputs_of(exact), args[0].dtype)
    if entry.operator.backward is None:
        return
    cotangents = [
        _among_nans(
            torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out)
        )
        for out in differentiable_outputs(entry, result)
    ]
    with poisoned_memory():
        actual = gradients(entry, result, args, cotangents)
    expected = gradients(entry, exact, wide, [c.cpu().double() for c in cotangents])
    _compare_gradients(entry, actual, expected, differentiable_outputs(entry, result)[0].dtype)


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


def _on_cpu(arg: Any) -> Any:
    return arg.cpu() if isinstance(arg, Tensor) else arg


def _roundings(entry: Entry, dtype: torch.dtype) -> float:
    return min(entry.roundings, HALF_ROUNDINGS) if dtype.itemsize == 2 else entry.roundings


def _compare_results(
    entry: Entry, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    """Statistics too: the backward starts from them.

    Where a product of 16-bit inputs is rounded to float16 on its way, float32 statistics err by that too:
    at most 0.18 eps of float16 on the registry's samples (the log_sum of pooled_attention).
    """
    for place, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == wanted.shape, f"result {place}: {tuple(got.shape)}"
        assert got.is_contiguous(), f"result {place} is not contiguous, as the fake promises"
        if not got.is_floating_point():
            assert torch.equal(got.cpu(), wanted), f"result {place}"
        elif wanted.numel():
            assert unwritten_fraction(got) == 0, f"result {place} has unwritten values"
            error = relative_error(got, wanted)
            bound = precision_error_bound(got.dtype, _roundings(entry, got.dtype))
            if dtype in (torch.float16, torch.bfloat16):
                bound = max(bound, torch.finfo(torch.float16).eps / 2)
            assert error <= bound, f"result {place}: relative error {error:.2e}, allowed {bound:.2e}"


def _compare_gradients(
    entry: Entry, actual: list[Tensor], expected: list[Tensor], result_dtype: torch.dtype
) -> None:
    largest = max((float(g.abs().max()) for g in expected if g.numel()), default=0.0)
    for place, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == wanted.shape, f"gradient {place}: {tuple(got.shape)}"
        if not wanted.numel():
            continue
        assert unwritten_fraction(got) == 0, f"gradient {place} has unwritten values"
        coarser = max(result_dtype, got.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        # Gradients that vanish by symmetry hold rounding of the largest gradient of the case. Below the
        # smallest normal number a dtype is as coarse as there.
        smallest = torch.finfo(got.dtype).smallest_normal
        size = max(float(wanted.abs().max()), 1e-2 * largest, smallest)
        error = float((got.cpu().double() - wanted).abs().max()) / size
        bound = GRADIENT_FACTOR * precision_error_bound(coarser, _roundings(entry, coarser))
        assert error <= bound, f"gradient {place}: relative error {error:.2e}, allowed {bound:.2e}"
