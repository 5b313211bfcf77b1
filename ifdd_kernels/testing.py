"""Comparison helpers for the tests of ops: errors with a meaning, memory that shows what was not written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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


def unwritten_fraction(tensor: Tensor) -> float:
    """Share of NaN in a result: under :func:`poisoned_memory`, what a kernel forgot to write."""
    return float(tensor.isnan().double().mean()) if tensor.numel() and tensor.is_floating_point() else 0.0


def zero_fraction(tensor: Tensor) -> float:
    """Share of exact zeros: a gradient that should be dense and is not has missing tiles."""
    return float((tensor == 0).double().mean()) if tensor.numel() else 0.0


def precision_error_bound(dtype: torch.dtype, factor: float) -> float:
    """``factor`` roundings of a dtype, as a relative error."""
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

    PyTorch lets cuDNN compute float32 convolutions in TF32, 10 bits, unless told otherwise: a reference that
    does so hides errors of a thousand roundings.
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
