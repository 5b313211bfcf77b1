"""Set-up of the tests on a GPU: reproducible products, a sound device; and a repaired interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu.device_health import pytest_runtest_teardown
from ifdd_kernels.triton import _tuned, interpreted
from ops import interpreter_bfloat16, quick_interpreter

__all__ = ["pytest_runtest_teardown"]

# Read when cuBLAS starts: without it, products may differ from call to call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def no_choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder."""
    return tmp_path_factory.mktemp("choices")


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch, no_choices: Path) -> None:
    """Kernels run in their default configuration, unless a test forces one.

    Nothing is timed, and what was timed before, by whoever used this machine or wrote the table of known
    devices, is not looked up.
    """
    monkeypatch.setenv("IFDD_TRITON_TUNE", "0")
    monkeypatch.setenv("IFDD_TRITON_CACHE", str(no_choices))
    monkeypatch.setattr(_tuned, "CHOSEN", {})


@pytest.fixture(autouse=True, scope="session")
def _interpreter() -> Iterator[None]:
    """It computes bfloat16 as the hardware does, and nothing in vain."""
    if not interpreted():
        yield
        return
    pytest.importorskip("triton", reason="Triton is not installed")
    with interpreter_bfloat16.repaired(), quick_interpreter.quick():
        yield
