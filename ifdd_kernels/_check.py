"""Argument checks of the ops. Every message names the op, the argument, what was expected and what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: More elements than an address space holds. Where sizes stay below it, their products with the constants of
#: the kernels (27 taps, padding to 16, 8 bytes) stay in 64 bits.
MOST_ELEMENTS = 2**47
_INT64 = range(-(2**63), 2**63)
#: The Python types of a schema's numbers.
EXACT: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "bool": (bool,)}


def tensor(op: str, name: str, value: object) -> None:
    """Checks for a plain tensor, with strides, whose sizes can be multiplied."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {_kind(value)}")
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        kind = "nested" if value.is_nested else "quantised" if value.is_quantized else value.layout
        raise TypeError(f"{op}: {name} must be a dense tensor, got one that is {kind}")
    count = value.numel()
    # A number that is an integer to TorchDynamo alone would become a guard.
    if type(count) is int and not torch.compiler.is_dynamo_compiling() and 0 < count <= MOST_ELEMENTS:
        return
    extent(op, name, value.shape)


def _kind(value: object) -> str:
    """How a refusal calls a value of the wrong type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r:.60}"


def extent(op: str, name: str, sizes: Sequence[int]) -> None:
    """Checks that products of these sizes stay below what any memory holds.

    A size of zero counts as one: an empty tensor holds nothing, but its other sizes are multiplied with each
    other. Sizes that are symbols to a compiler are not looked at, which would bound them. TorchDynamo takes
    its symbols for integers, so under it this check is left to the op's fake, which sees them as symbols.
    """
    if torch.compiler.is_dynamo_compiling():
        return
    product = 1
    for size in sizes:
        if isinstance(size, int):
            product *= max(1, size)
    if product > MOST_ELEMENTS:
        shown = ", ".join(str(size) for size in sizes)
        raise ValueError(f"{op}: {name} makes sizes whose product is above 2**47: ({shown})")


def number(op: str, name: str, kind: str, value: Any) -> None:
    """Checks an argument that a schema calls int, float, bool or List[int].

    Python and PyTorch would convert a tensor, also one that is learned: its gradient would be lost.
    """
    if kind == "List[int]":
        items = value if isinstance(value, (list, tuple)) else [value]
        for item in items:
            _one(op, name, "int", item, "integers")
    else:
        _one(op, name, kind, value, {"int": "an integer", "float": "a number", "bool": "a bool"}[kind])


def _one(op: str, name: str, kind: str, value: Any, wanted: str) -> None:
    if type(value) in EXACT[kind]:  # all that compilers see here
        fits = True
    elif kind == "bool":
        fits = isinstance(value, torch.SymBool)
    elif isinstance(value, bool):
        fits = False
    elif kind == "int":
        fits = isinstance(value, (numbers.Integral, torch.SymInt))
    else:
        fits = isinstance(value, (numbers.Real, torch.SymInt, torch.SymFloat))
    # What overrides PyTorch's functions, a proxy of a tracer for one, stands for the number it will be.
    if not fits and (isinstance(value, Tensor) or not hasattr(value, "__torch_function__")):
        learned = " that requires a gradient, which a number has not" if _learned(value) else ""
        raise TypeError(f"{op}: {name} must be {wanted}, got {_kind(value)}{learned}")
    if kind == "int" and isinstance(value, int) and value not in _INT64:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {value!r:.60}")
    if kind == "float" and isinstance(value, int) and abs(value) >= 2**1024:
        raise ValueError(f"{op}: {name} must be within the range of float64, got {value!r:.60}")


def _learned(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def one_device(op: str, names: Sequence[str], values: Sequence[object]) -> None:
    """Checks that all tensors of a call are on the device of the first."""
    first: tuple[str, Tensor] | None = None
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            if first is None:
                first = name, value
            else:
                device(op, name, value, *first)


def shape(op: str, name: str, value: Tensor, expected: Sequence[int | str]) -> None:
    """Checks rank and sizes; a string in ``expected`` names an axis of any size."""
    if value.shape == expected:
        return
    fits = value.dim() == len(expected) and all(
        isinstance(size, str) or size == actual for size, actual in zip(expected, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in expected) + ("," if len(expected) == 1 else "")
        raise ValueError(f"{op}: {name} must have shape ({wanted}), got {tuple(value.shape)}")


def channels(op: str, name: str, value: Tensor) -> None:
    """Checks that the last axis is not empty."""
    if value.shape[-1] < 1:
        raise ValueError(f"{op}: {name} must have at least one channel, got shape {tuple(value.shape)}")


def default_scale(op: str, query: Tensor) -> float:
    """The scale of attention on heads of d channels, d^-1/2."""
    if not isinstance(query, Tensor):
        tensor(op, "query", query)  # type: ignore[unreachable]
    sizes = query.shape
    if len(sizes) < 1 or sizes[-1] < 1:
        raise ValueError(f"{op}: query must have shape (B, M, h, d), got {tuple(sizes)}")
    # Sizes are tensors to torch.jit.trace, and a scale is none.
    width: Any = sizes[-1]
    scale: float = (int(width) if isinstance(width, Tensor) else width) ** -0.5
    return scale


def floating(op: str, name: str, value: Tensor) -> None:
    """Checks for one of the floating dtypes the kernels take."""
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {value.dtype}")


def same(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that two activations share dtype and device."""
    if value.dtype != other.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}")
    device(op, name, value, other_name, other)


def device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Checks that two tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}, got {value.device}"
        )


def parameter(
    op: str, name: str, value: Tensor, expected: Sequence[int | str], x_name: str, x: Tensor
) -> None:
    """Checks a parameter: its shape, x's device, and x's dtype or float32 (float64 only with float64)."""
    shape(op, name, value, expected)
    accepted = {x.dtype} if x.dtype == torch.float64 else {x.dtype, torch.float32}
    if value.dtype not in accepted:
        wanted = " or ".join(sorted(str(dtype) for dtype in accepted))
        raise TypeError(f"{op}: {name} must be {wanted} with {x_name} of {x.dtype}, got {value.dtype}")
    device(op, name, value, x_name, x)


def linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Checks the arguments of a linear layer (..., K) -> (..., M)."""
    floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape (..., K) with at least two axes, got {tuple(x.shape)}")
    parameter(op, "weight", weight, ("M", x.shape[-1]), "x", x)
    if bias is not None:
        shape(op, "bias", bias, (weight.shape[0],))
        same(op, "bias", bias, "weight", weight)


def positive(op: str, **values: float) -> None:
    """Checks that numbers are above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{op}: {name} must be positive, got {value}")


def triple(op: str, name: str, value: Sequence[int]) -> list[int]:
    """Checks a (time, height, width) triple of positive integers and returns it as a list."""
    if isinstance(value, (list, tuple)) and len(value) == 3:  # the usual case, on every call
        t, h, w = value
        if type(t) is type(h) is type(w) is int and min(t, h, w) > 0 and max(t, h, w) <= MOST_ELEMENTS:
            return [t, h, w]
    _sizes(op, name, value, 3, "three positive integers (time, height, width)")
    return list(value)


def _sizes(op: str, name: str, value: Sequence[int], count: int, wanted: str) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{op}: {name} must be {wanted}, got {_kind(value)}")
    for size in value:
        _one(op, name, "int", size, wanted)
    if len(value) != count or any(size < 1 for size in value):
        raise ValueError(f"{op}: {name} must be {wanted}, got {tuple(value)}")


def norms(op: str, **values: object) -> None:
    """Checks (weight, bias) pairs."""
    for name, value in values.items():
        if not (isinstance(value, (list, tuple)) and len(value) == 2):
            raise TypeError(f"{op}: {name} must be (weight, bias), got {_kind(value)}")


def grid(op: str, x: Tensor, height: int, width: int, pool: int) -> None:
    """Checks frames (B, T, N, C) against their spatial grid, N = height * width."""
    shape(op, "x", x, ("B", "T", "N", "C"))
    floating(op, "x", x)
    positive(op, height=height, width=width, pool=pool)
    extent(op, "grid (height, width)", (height, width))
    if x.shape[2] != height * width:
        raise ValueError(
            f"{op}: x has N = {x.shape[2]} tokens a frame, but grid ({height}, {width}) has {height * width}"
        )
    channels(op, "x", x)
    extent(op, "pool", (x.shape[0], pool, pool, x.shape[3]))


def tokenizer(
    op: str, x: Tensor, weight_name: str, weight: Tensor, bias_name: str, bias: Tensor, pool: int
) -> None:
    """Checks the 1x1 convolution of a tokenizer of frames that :func:`grid` has checked."""
    parameter(op, weight_name, weight, ("S", x.shape[3]), "x", x)
    if weight.shape[0] < 1:
        raise ValueError(f"{op}: {weight_name} must have at least one row, got shape {tuple(weight.shape)}")
    parameter(op, bias_name, bias, (weight.shape[0],), "x", x)
    extent(op, "pool", (x.shape[0], x.shape[1], weight.shape[0], pool, pool))
    extent(op, weight_name, (weight.shape[0], x.shape[2]))


def even_frames(op: str, x: Tensor) -> None:
    """Checks that the number of frames T of (B, T, ...) is even and not zero."""
    # T x T products are formed of B clips.
    extent(op, "x", (x.shape[0], x.shape[1], x.shape[1]))
    if x.shape[1] < 2 or x.shape[1] % 2:
        raise ValueError(f"{op}: the number of frames T must be even and at least 2, got {x.shape[1]}")


def pair(op: str, name: str, value: Sequence[int]) -> tuple[int, int]:
    """Checks a (height, width) pair of positive integers and returns it."""
    _sizes(op, name, value, 2, "two positive integers (height, width)")
    return value[0], value[1]
