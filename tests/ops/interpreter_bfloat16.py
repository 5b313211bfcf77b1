"""Repair of Triton's interpreter for bfloat16, for tests.

The interpreter keeps bfloat16 as the 16 bits of a uint16. Three things go wrong with that (Triton 3.6 to
3.9): float32 -> bfloat16 truncates instead of rounding to even, ``tl.dot`` multiplies the bit patterns as
integers, and so does every arithmetic operation. The first two are repaired (and conversions of subnormal
numbers with them); the third raises, because the kernels here compute in float32 and a bfloat16 sum in one
of them is a mistake. One flaw beside bfloat16 is repaired too: a scalar condition spread over a tile becomes
int32, which no mask may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
Handle = interpreter.TensorHandle
NUMPY = {tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64}


def widened(bits: Any) -> Any:
    """float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: Any) -> Any:
    """bfloat16 bits of float32 values, rounded to nearest, ties to even."""
    values = np.asarray(values, np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, Handle) and value.dtype.scalar == tl.bfloat16


def _in_float32(value: Any) -> Any:
    return Handle(widened(value.data), tl.float32) if _is_bfloat16(value) else value


def _cast(original: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, source: Any, target: Any, *rounding: Any) -> Any:
        if target.scalar == tl.bfloat16 and not _is_bfloat16(source):
            return Handle(rounded(source.data), tl.bfloat16)
        if _is_bfloat16(source) and target.scalar in NUMPY:
            return Handle(widened(source.data).astype(NUMPY[target.scalar]), target.scalar)
        return original(self, source, target, *rounding)

    return cast


def _dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original(self, _in_float32(a), _in_float32(b), *rest)

    return dot


def _splat(original: Callable[..., Any]) -> Callable[..., Any]:
    def splat(self: Any, target: Any, scalar: Any) -> Any:
        result = original(self, target, scalar)
        is_mask = scalar.data.dtype == np.bool_  # the handle of a comparison has its operands' dtype
        return Handle(result.data.astype(np.bool_), tl.int1) if is_mask else result

    return splat


def _refuse(original: Callable[..., Any]) -> Callable[..., Any]:
    def operation(self: Any, *operands: Any) -> Any:
        if any(_is_bfloat16(operand) for operand in operands):
            raise TypeError("arithmetic on bfloat16 in a kernel: convert to float32 first")
        return original(self, *operands)

    return operation


@contextmanager
def repaired() -> Iterator[None]:
    """Kernels interpreted inside get their bfloat16 right."""
    wrappers = {
        "cast_impl": _cast,
        "create_fp_to_fp": _cast,
        "create_dot": _dot,
        "create_splat": _splat,
        "binary_op": _refuse,
        "unary_op": _refuse,
        "create_fma": _refuse,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, wrapper in wrappers.items():
            patch.setattr(Builder, name, wrapper(getattr(Builder, name)))
        yield
