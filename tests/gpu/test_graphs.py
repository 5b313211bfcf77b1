"""CUDA graphs: a captured call replayed on new values, forward and backward.

Without a GPU a stand-in "graph" runs the captured call again, so that the test itself has run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry, Maker
from ops.backend_checks import has_gradients
from ops.devices import affordable, call_of, devices, parameter

OPS = [entry for entry in REGISTRY.values() if entry.operator is not None]
Step = Callable[[], tuple[Tensor, ...]]


def _cases(device: str) -> Iterator[Any]:
    for entry in OPS:
        for backend in ("native", "triton"):
            if not affordable(entry.name, backend, device):
                continue
            yield parameter(device, entry, backend, name=f"{entry.name}-{backend}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    found = [one for device in devices(metafunc.config) for one in _cases(device)]
    metafunc.parametrize(("device", "entry", "backend"), found)


def _captured(step: Step, device: str) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """Results of a step, and what computes them anew where they lie."""
    if device == "cpu":
        results = step()

        def again() -> None:
            for held, new in zip(results, step(), strict=True):
                held.copy_(new)

        return results, again
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries set themselves up, kernels are tuned
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return results, graph.replay


def test_a_graph_replays_on_new_values(device: str, entry: Entry, backend: str) -> None:
    call = call_of(entry, backend, device, torch.float32)
    held, fresh = (next(iter(entry.samples(Maker(torch.float32, device, seed)))).args for seed in (1, 2))
    held = tuple(_leaf(arg) for arg in held)

    def step(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        result = call(*args)
        outputs = tuple(out.detach() for out in outputs_of(result))
        if not has_gradients(entry):
            return outputs
        wanted = [arg for arg in args if isinstance(arg, Tensor) and arg.requires_grad]
        # The results as cotangents: new with every replay.
        differentiable = [out for out in entry.differentiable(result) if out.requires_grad]
        cotangents = [out.detach() for out in differentiable]
        grads = torch.autograd.grad(differentiable, wanted, cotangents, allow_unused=True)
        return (*outputs, *(grad for grad in grads if grad is not None))

    results, replay = _captured(lambda: step(held), device)
    with torch.no_grad():
        for mine, new in zip(held, fresh, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(new)
    for out in results:
        out.fill_(7)
    replay()
    expected = step(tuple(_leaf(arg) for arg in fresh))
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got, wanted)


def _leaf(arg: Any) -> Any:
    real = isinstance(arg, Tensor) and arg.is_floating_point()
    return arg.detach().requires_grad_() if real else arg
