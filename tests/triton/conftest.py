"""The interpreter computes bfloat16 as the hardware does, and nothing in vain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ifdd_kernels.triton import interpreted
from ops import interpreter_bfloat16, quick_interpreter

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True, scope="session")
def _interpreter() -> Iterator[None]:
    if not interpreted():
        yield
        return
    with interpreter_bfloat16.repaired(), quick_interpreter.quick():
        yield
