"""On a GPU: every backend of every op on all samples of the registry, and inside a CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels.backends import can_run, composed
from ifdd_kernels.registry import REGISTRY, Entry, Maker
from ops.cases import outputs_of
from ops.twins import check_twin, lowered

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OPS = [entry for entry in REGISTRY.values() if entry.operator is not None]
BACKENDS = ("native", "triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def twin_of(entry: Entry, backend: str, dtype: torch.dtype) -> str:
    """The op of a backend; skips with the reason where it cannot run."""
    assert entry.operator is not None
    if backend != "reference" and composed(entry.operator, "cuda", backend):
        pytest.skip(f"runs as {' and '.join(entry.operator.parts)} there")
    support = can_run(entry.name, backend, torch.empty(0, device="cuda", dtype=dtype))
    if not support:
        pytest.skip(support.reason)
    return "" if backend == "native" else backend


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("entry", "label"),
    [
        pytest.param(entry, sample.label, id=f"{entry.name}-{sample.label}")
        for entry in OPS
        for sample in entry.samples(Maker(torch.float32, "meta"))
    ],
)
def test_values_and_gradients(entry: Entry, label: str, backend: str, dtype: torch.dtype) -> None:
    check_twin(entry, lowered(entry, label, dtype, "cuda"), twin_of(entry, backend, dtype))


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("entry", OPS, ids=lambda entry: entry.name)
def test_a_graph_replays_on_new_values(entry: Entry, backend: str) -> None:
    assert entry.operator is not None
    op = entry.operator.overload(twin_of(entry, backend, torch.float32))
    args, fresh = (next(iter(entry.samples(Maker(torch.float32, "cuda", seed)))).args for seed in (1, 2))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            op(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = outputs_of(op(*args))
    for held, new in zip(args, fresh, strict=True):
        if isinstance(held, Tensor):
            held.copy_(new)
    graph.replay()
    expected: tuple[Any, ...] = outputs_of(op(*fresh))
    for got, wanted in zip(result, expected, strict=True):
        assert torch.equal(got, wanted)
