"""What tests on a GPU need around them: reproducible products, the interpreter's bfloat16, a sound device."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gpu.device_health import pytest_runtest_teardown
from ifdd_kernels.triton import interpreted
from ops import interpreter_bfloat16

__all__ = ["pytest_runtest_teardown"]

# Read when cuBLAS starts: without it, products may differ from call to call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run in their default configuration, unless a test forces one: nothing is timed."""
    monkeypatch.setenv("IFDD_TRITON_TUNE", "0")


@pytest.fixture(autouse=True, scope="session")
def _bfloat16() -> Iterator[None]:
    """The interpreter computes bfloat16 as the hardware does."""
    if not interpreted():
        yield
        return
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter_bfloat16.repaired():
        yield
