"""A backend's kernels against the float64 definition, on the CPU (interpreter) or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import Entry, Maker, Sample
from ifdd_kernels.testing import (
    check_against_float64,
    full_float32,
    poisoned_memory,
    precision_error_bound,
)
from ops.cases import forward_and_backward, gradients

#: Where results are 16-bit, float32 arithmetic hides below their one rounding (half an eps), whatever the
#: registry allows float32. On its samples Triton's results err by at most 0.46 eps, gradients by 3.7.
HALF_ULPS = 2

#: Where a product of 16-bit inputs is rounded to float16 on its way, float32 statistics err by that too: at
#: most 0.18 eps of float16 on the registry's samples (the log_sum of pooled_attention).
STATISTICS = torch.finfo(torch.float16).eps / 2


def check_backend(entry: Entry, sample: Sample, backend: str = "triton") -> None:
    """Values and gradients of a backend against the op's definition in float64, see :func:`check_call`."""
    assert entry.operator is not None
    check_call(entry, sample, entry.operator.overload(backend))


def check_call(
    entry: Entry,
    sample: Sample,
    call: Callable[..., Any],
    against_eager: bool = False,
    seed: int = 5,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Values and gradients of a call against the op's definition in float64, on the arguments' device.

    The rule is :func:`ifdd_kernels.testing.check_against_float64`'s, which takes the ``options``. Bounds are
    the registry's; with ``against_eager``, for sums longer than those of the registry's samples, the error of
    the definition in the precision that is tested counts. Statistics are compared too: the backward starts
    from them. Memory the call allocates is full of NaN, so that what it forgets to write shows; so is all
    memory around its arguments, so that what it should not read does. float32 means float32, not TF32.

    Returns:
        The results and the gradients.
    """
    with full_float32():
        args = tuple(_leaf(_among_nans(arg)) for arg in sample.args)
        with poisoned_memory():
            result = call(*args)
        outputs = outputs_of(result)
        for place, out in enumerate(outputs):
            assert out.is_contiguous(), f"result {place} is not contiguous, as the fake promises"
        differentiable = entry.differentiable(result) if has_gradients(entry) else []
        cotangents = [_cotangent(out, seed) for out in differentiable]
        actual = list(outputs)
        if cotangents:
            with poisoned_memory():
                actual += gradients(entry, result, args, cotangents)
        count = len(outputs)
        exact = _definition(
            entry, tuple(_leaf(_wide(arg)) for arg in args), [c.double() for c in cotangents], count
        )
        eager = None
        if against_eager:
            eager = _definition(entry, tuple(_leaf(arg) for arg in args), cotangents, count)
    dtypes = [out.dtype for out in _promised(entry, args, outputs)[:count]]
    if cotangents:
        dtypes += [arg.dtype for arg in args if _real(arg)]
        options = {"result_dtype": differentiable[0].dtype, **options}
    options = {
        "allowed": partial(_allowed, entry),
        "least_allowed": STATISTICS if args[0].dtype.itemsize == 2 else 0.0,
        **options,
    }
    check_against_float64(actual, exact, results=count, dtypes=dtypes, eager=eager, **options)
    return tuple(tensor.detach() for tensor in actual)


def check_precision(entry: Entry, sample: Sample, call: Callable[..., Any], seed: int = 5) -> None:
    """:func:`check_call` with the registry's bounds to the letter, in 16 bits too."""
    allowed = partial(precision_error_bound, factor=entry.ulps)
    check_call(entry, sample, call, seed=seed, allowed=allowed, least_allowed=0.0)


def check_as_exact_as_reference(
    op: str,
    args: Sequence[Any],
    grads: Sequence[Tensor],
    allowed: Callable[[torch.dtype], float],
    **options: Any,
) -> None:
    """Native results and gradients beside those of the reference in the same precision.

    Both accumulate in float32 (float64), in another order, and round once: errors are of one size, or within
    ``allowed`` where those of the reference happen to be smaller. ``options``:
    :func:`ifdd_kernels.testing.check_against_float64`'s.
    """
    exact = forward_and_backward(op, [_wide(arg) for arg in args], [_wide(g) for g in grads], "reference")
    eager = forward_and_backward(op, args, grads, "reference")
    with poisoned_memory():
        native = forward_and_backward(op, args, grads)
    assert all(got.is_contiguous() for got in native)
    check_against_float64(
        native,
        exact,
        allowed,
        results=len(OPERATORS[op].signature.results),
        dtypes=[tensor.dtype for tensor in eager],
        eager=eager,
        **options,
    )


def has_gradients(entry: Entry) -> bool:
    """Whether gradients flow through an op; those that are composed of others all have some."""
    return entry.operator is None or entry.operator.backward is not None


def definition(entry: Entry) -> Callable[..., Any]:
    """Plain PyTorch; an op that is composed of others is its own definition."""
    return entry.reference if entry.operator else entry.overload


def _definition(entry: Entry, args: tuple[Any, ...], cotangents: list[Tensor], count: int) -> list[Tensor]:
    """The first results and the gradients of the definition, by PyTorch, in the arguments' precision."""
    result = definition(entry)(*args)
    grads = gradients(entry, result, args, cotangents) if cotangents else []
    return [*outputs_of(result)[:count], *grads]


def _promised(entry: Entry, args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Results as the op's fake makes them; an op that is composed of others has none."""
    if entry.operator is None:
        return outputs
    return outputs_of(entry.operator.fake(*(a.to("meta") if isinstance(a, Tensor) else a for a in args)))


def _cotangent(out: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(out.device).manual_seed(seed)
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
    return arg.detach().double() if _real(arg) else arg


def _allowed(entry: Entry, dtype: torch.dtype) -> float:
    ulps = min(entry.ulps, HALF_ULPS) if dtype.itemsize == 2 else entry.ulps
    return precision_error_bound(dtype, ulps)
