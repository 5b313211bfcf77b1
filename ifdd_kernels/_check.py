"""Argument checks of the ops. Every message names the op, the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def triple(op: str, name: str, value: Sequence[int]) -> None:
    """Checks a (time, height, width) triple of positive integers."""
    if len(value) != 3 or any(size < 1 for size in value):
        raise ValueError(f"{op}: {name} must be three positive integers (time, height, width), got {value}")


def grid(op: str, x: Tensor, height: int, width: int, pool: int) -> None:
    """Checks frames (B, T, N, C) against their spatial grid, N = height * width."""
    shape(op, "x", x, ("B", "T", "N", "C"))
    floating(op, "x", x)
    positive(op, height=height, width=width, pool=pool)
    if x.shape[2] != height * width:
        raise ValueError(
            f"{op}: x has N = {x.shape[2]} tokens a frame, but grid ({height}, {width}) has {height * width}"
        )


def even_frames(op: str, x: Tensor) -> None:
    """Checks that the number of frames T of (B, T, ...) is even and not zero."""
    if x.shape[1] < 2 or x.shape[1] % 2:
        raise ValueError(f"{op}: the number of frames T must be even and at least 2, got {x.shape[1]}")


def pair(op: str, name: str, value: Sequence[int]) -> tuple[int, int]:
    """Checks a (height, width) pair of positive integers and returns it."""
    if len(value) != 2 or any(size < 1 for size in value):
        raise ValueError(f"{op}: {name} must be two positive integers (height, width), got {tuple(value)}")
    return value[0], value[1]
