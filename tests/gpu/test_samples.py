"""Every backend of every op on all samples of the registry; what repeats, what compilers make of it.

On the CPU one sample an op, so that no test's body runs for the first time on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry, Maker
from ops.backend_checks import check_call, lowered
from ops.devices import BACKENDS, DTYPES, affordable, call_of, devices, parameter, short

OPS = [entry for entry in REGISTRY.values() if entry.operator is not None]


def _samples(device: str) -> Iterator[Any]:
    for entry in OPS:
        labels = [sample.label for sample in entry.samples(Maker(torch.float32, "meta"))]
        for backend in BACKENDS:
            if not affordable(entry.name, backend, device):
                continue
            for dtype in DTYPES if device == "cuda" else (torch.float32,):
                for label in labels if device == "cuda" else labels[:1]:
                    name = f"{entry.name}-{backend}-{label}-{short(dtype)}"
                    yield parameter(device, entry, backend, label, dtype, name=name)


def _first(device: str, *backends: str) -> Iterator[Any]:
    for entry in OPS:
        for backend in backends:
            if not affordable(entry.name, backend, device):
                continue
            yield parameter(device, entry, backend, name=f"{entry.name}-{backend}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    names = metafunc.fixturenames
    if "label" in names:
        found = [one for device in devices(metafunc.config) for one in _samples(device)]
        metafunc.parametrize(("device", "entry", "backend", "label", "dtype"), found)
    elif "backend" in names:
        backends = ("native", "triton")
        found = [one for device in devices(metafunc.config) for one in _first(device, *backends)]
        metafunc.parametrize(("device", "entry", "backend"), found)


def test_values_and_gradients(
    device: str, entry: Entry, backend: str, label: str, dtype: torch.dtype
) -> None:
    call = call_of(entry, backend, device, dtype)
    check_call(entry, lowered(entry, label, dtype, device), call)


def _arguments(entry: Entry, device: str) -> tuple[Any, ...]:
    return next(iter(entry.samples(Maker(torch.float32, device)))).args


def test_results_repeat_bit_for_bit(device: str, entry: Entry, backend: str) -> None:
    call, arguments = call_of(entry, backend, device, torch.float32), _arguments(entry, device)
    first = outputs_of(call(*arguments))
    for _ in range(3):
        for got, wanted in zip(outputs_of(call(*arguments)), first, strict=True):
            assert torch.equal(got, wanted)


def test_a_compiled_call_gives_the_same(device: str, entry: Entry, backend: str) -> None:
    call, arguments = call_of(entry, backend, device, torch.float32), _arguments(entry, device)
    torch.compiler.reset()
    # Inductor changes launches that it sees: those of Triton kernels on a GPU.
    compiler = "inductor" if (device, backend) == ("cuda", "triton") else "aot_eager"
    compiled = torch.compile(lambda *args: outputs_of(call(*args)), fullgraph=True, backend=compiler)
    for got, wanted in zip(compiled(*arguments), outputs_of(call(*arguments)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
