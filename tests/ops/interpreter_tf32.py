"""Rounds the factors of a TF32 product as tensor cores do, in Triton's interpreter.

The interpreter multiplies float32 as it is, whatever ``input_precision`` says. A tensor core takes the upper
19 bits of a factor and drops the rest. Products of three TF32 products are left alone: they err like float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter


def cut(values: Any) -> Any:
    """float32 without the 13 bits that TF32 has no room for."""
    values = np.ascontiguousarray(values, np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


@contextmanager
def truncating() -> Iterator[list[bool]]:
    """TF32 products inside see what a tensor core sees; the list says of each product whether it was one."""
    original = interpreter.InterpreterBuilder.create_dot
    seen: list[bool] = []

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        tf32 = precision == ir.INPUT_PRECISION.TF32
        seen.append(tf32)
        if tf32:
            a, b = (
                interpreter.TensorHandle(cut(x.data), tl.float32) if x.dtype.scalar == tl.float32 else x
                for x in (a, b)
            )
        return original(self, a, b, d, precision, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
        yield seen
