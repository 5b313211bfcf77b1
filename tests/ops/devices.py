"""Tests with one body for a GPU and, for less, the CPU: so that it has run before there is a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ifdd import IFDDConfig
from ifdd_kernels.backends import can_run, composed
from ifdd_kernels.registry import Entry

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("native", "triton", "reference")
#: The network of the paper on a GPU; on the CPU the same channels, heads and strides on small frames.
NETWORKS = {"cuda": IFDDConfig(), "cpu": IFDDConfig(image_size=64)}
#: Ops whose Triton kernels the interpreter is quick with; the other kernels' tests are in tests/triton.
INTERPRETED = frozenset({"frame_correlation", "lifting_loss", "lifting_residual"})
ON_A_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


def devices(config: pytest.Config) -> tuple[str, ...]:
    """Devices to make tests for: the GPU's too where there is one or they are asked for by their mark."""
    asked = "gpu" in (config.getoption("markexpr", "") or "")
    return ("cpu", "cuda") if asked or torch.cuda.is_available() else ("cpu",)


def parameter(device: str, *values: Any, name: str, nightly: bool = False) -> Any:
    """A test's parameters, the device first; the name says it too. ``nightly`` holds for the CPU alone."""
    on_the_cpu = pytest.mark.nightly if nightly else ()
    return pytest.param(
        device, *values, id=f"{device}-{name}", marks=ON_A_GPU if device == "cuda" else on_the_cpu
    )


def affordable(op: str, backend: str, device: str) -> bool:
    """Whether a test whose body is the same for every op runs this one, too."""
    return device == "cuda" or backend != "triton" or op in INTERPRETED


def short(dtype: torch.dtype) -> str:
    """A dtype in the name of a test."""
    return str(dtype).removeprefix("torch.")


def call_of(entry: Entry, backend: str, device: str, dtype: torch.dtype) -> Callable[..., Any]:
    """An op on a backend, as a function of its schema's arguments; skips with the reason if it cannot run.

    On a GPU a composed op is the public function, which calls its parts.
    """
    assert entry.operator is not None
    support = can_run(entry.name, backend, torch.empty(0, device=device, dtype=dtype))
    if not support:
        pytest.skip(support.reason)
    if backend != "reference" and composed(entry.operator, device, backend):
        return functools.partial(entry.public, backend=backend)
    return entry.operator.overload(backend)
