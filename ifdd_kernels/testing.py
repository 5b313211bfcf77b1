"""Comparison helpers for the tests of ops: errors with a meaning, memory that shows what was not written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Gradients may err this much more than results: each is a product of two results of that accuracy, summed
#: over one more axis.
GRADIENT_FACTOR = 4

#: Times the error of eager PyTorch in the tested precision that is allowed where it is asked: sums in another
#: order, and factors of products rounded once more.
EAGER_FACTOR = 4


def _double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All on the device of the last one: what is large there is not copied to be compared."""
    device = tensors[-1].device
    return tuple(t.detach().to(device, torch.float64).flatten() for t in tensors)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Max |a - e| / max |e|: infinite when NaN or of another shape, 0 for two empty tensors.

    The denominator is the tensor's largest value, not each element's: sums that cancel have no relative
    accuracy of their own. Against an all-zero expectation it is the largest absolute error.
    """
    if actual.shape != expected.shape:
        return float("inf")
    a, e = _double(actual, expected)
    if a.numel() == 0:
        return 0.0
    difference = (a - e).abs().max()
    if not torch.isfinite(difference):
        return float("inf")
    size = e.abs().max()
    return float(difference / size) if size > 0 else float(difference)


def cosine_error(actual: Tensor, expected: Tensor) -> float:
    """1 - cos of the angle between two tensors: small for any error that keeps the direction."""
    a, e = _double(actual, expected)
    if not torch.isfinite(a).all():
        return float("inf")
    lengths = a.norm() * e.norm()
    return float(1 - (a @ e) / lengths) if lengths > 0 else float((a - e).norm())


def bias_error(actual: Tensor, expected: Tensor) -> float:
    """|mean(a - e)| / mean |e|: near 0 when errors are rounding, not when a kernel truncates."""
    a, e = _double(actual, expected)
    size = e.abs().mean()
    bias = (a - e).mean().abs()
    return float(bias / size) if size > 0 else float(bias)


def check_against_float64(
    actual: Sequence[Tensor],
    exact: Sequence[Tensor],
    allowed: Callable[[torch.dtype], float],
    *,
    results: int,
    dtypes: Sequence[torch.dtype],
    result_dtype: torch.dtype | None = None,
    least_allowed: float = 0.0,
    gradient_factor: float = GRADIENT_FACTOR,
    eager: Sequence[Tensor] | None = None,
    eager_factor: float = EAGER_FACTOR,
    vanishing: float = 1e-2,
    mean_square: bool = False,
) -> None:
    """Results and gradients of an op, against those in float64.

    Of each tensor the shape, the dtype and the error: max |a - e| / size <= max(bound, eager_factor * eager),
    where ``eager`` is the same error of plain PyTorch in the tested precision. Integers must be equal. What
    holds NaN, as memory that was not written does under :func:`poisoned_memory`, fails.

    A result's size is max |e|. So is a gradient's, but at least ``vanishing`` times the largest one of all
    gradients, since those that vanish by symmetry hold the rounding of others; and at least the smallest
    normal number of its dtype, which is as coarse below as there.

    Args:
        actual: the results, then the gradients.
        exact: the same in float64.
        allowed: the bound of a result in a dtype.
        results: how many are results.
        dtypes: what each of ``actual`` must have.
        result_dtype: of the result that the backward starts from. Bounds of gradients are those of the
            coarser of this and their own dtype, times ``gradient_factor``.
        least_allowed: the least bound of results.
        gradient_factor: see ``result_dtype``.
        eager: results and gradients of plain PyTorch, where its errors count.
        eager_factor: times its errors.
        vanishing: see above; 0 where no gradient vanishes.
        mean_square: the root of the mean square in place of each maximum.

    Raises:
        AssertionError: names the first tensor that fails, and how.
    """
    _require(eager is None or len(eager) == len(exact), "as many tensors of plain PyTorch as of float64")
    largest = max((_magnitude(e, mean_square) for e in exact[results:]), default=0.0)
    for place, (got, wanted, dtype) in enumerate(zip(actual, exact, dtypes, strict=True)):
        gradient = place >= results
        what = f"gradient {place - results}" if gradient else f"result {place}"
        _require(got.shape == wanted.shape, f"{what}: shape {tuple(got.shape)} for {tuple(wanted.shape)}")
        _require(got.dtype == dtype, f"{what}: {got.dtype} for {dtype}")
        if not got.is_floating_point():
            _require(torch.equal(got, wanted), f"{what}: not the same integers")
            continue
        _require(unwritten_fraction(got) == 0, f"{what} has unwritten values")
        size = _magnitude(wanted, mean_square)
        if gradient:
            size = max(size, vanishing * largest, torch.finfo(dtype).smallest_normal)
            coarser = max(dtype, result_dtype or dtype, key=lambda d: torch.finfo(d).eps)
            bound = gradient_factor * allowed(coarser)
        else:
            bound = max(allowed(dtype), least_allowed)
        if eager is not None:
            _require(eager[place].shape == wanted.shape, f"{what}: another shape than plain PyTorch's")
            error = _error(eager[place], wanted, size, mean_square)
            # Where it is infinite, nothing could fail.
            _require(math.isfinite(error), f"{what}: the error of plain PyTorch in this precision is {error}")
            bound = max(bound, eager_factor * error)
        error = _error(got, wanted, size, mean_square)
        _require(error <= bound, f"{what}: relative error {error:.2e}, allowed {bound:.2e}")


def _require(condition: bool, failure: str) -> None:
    """An assertion that stays under ``python -O``."""
    if not condition:
        raise AssertionError(failure)


def _magnitude(tensor: Tensor, mean_square: bool) -> float:
    if not tensor.numel() or not tensor.is_floating_point():
        return 0.0
    wide = tensor.detach().double()
    return float(wide.square().mean().sqrt() if mean_square else wide.abs().max())


def _error(got: Tensor, wanted: Tensor, size: float, mean_square: bool) -> float:
    """Relative to a size; absolute where that is zero."""
    return _magnitude(got.detach().double() - wanted.detach(), mean_square) / (size or 1.0)


def unwritten_fraction(tensor: Tensor) -> float:
    """Share of NaN in a result: under :func:`poisoned_memory`, what a kernel forgot to write."""
    return float(tensor.isnan().double().mean()) if tensor.numel() and tensor.is_floating_point() else 0.0


def zero_fraction(tensor: Tensor) -> float:
    """Share of exact zeros: a gradient that should be dense and is not has missing tiles."""
    return float((tensor == 0).double().mean()) if tensor.numel() else 0.0


def precision_error_bound(dtype: torch.dtype, factor: float) -> float:
    """``factor`` ulps of a dtype at 1, as a relative error."""
    return factor * torch.finfo(dtype).eps


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN (the largest number for integers) inside, so that reading it shows."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 are float32 inside, on every device.

    PyTorch lets cuDNN compute float32 convolutions in TF32, 10 bits, unless that is switched off: a reference
    that does so hides errors of a thousand ulps.
    """
    # PyTorch keeps an older and a newer set of switches, and raises where it reads one and the other
    # disagrees: both are changed by the older ones and restored one after the other.
    cudnn: Any = torch.backends.cudnn
    switches = torch.backends, torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    newer = [switch.fp32_precision for switch in switches]
    products = _older(torch.get_float32_matmul_precision)
    convolutions = _older(lambda: cudnn.allow_tf32)
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for switch, precision in zip(switches, newer, strict=True):
            switch.fp32_precision = precision


def _older(switch: Callable[[], Any]) -> Any:
    """An older switch; None where the newer ones were used, which then decide alone."""
    try:
        return switch()
    except RuntimeError:
        return None


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Runs its body with a number of CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
