"""The Triton kernels on a real device: the assertions of tests/triton, and what only a GPU can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ifdd_kernels import backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Entry, Maker
from ops.cases import outputs_of
from ops.twins import check_twin, lowered

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WRITTEN = [REGISTRY[name] for name, operator in OPERATORS.items() if "triton" in operator.twins]
SAMPLES = [
    pytest.param(entry, sample.label, id=f"{entry.name}-{sample.label}")
    for entry in WRITTEN
    for sample in entry.samples(Maker(torch.float32))
]
FIRST = [pytest.param(entry, id=entry.name) for entry in WRITTEN]


def _first(entry: Entry) -> tuple[Any, ...]:
    return next(iter(entry.samples(Maker(torch.float32, "cuda")))).args


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("entry", "label"), SAMPLES)
def test_values_and_gradients(entry: Entry, label: str, dtype: torch.dtype) -> None:
    assert backends.can_run(entry.name, "triton", torch.empty(0, device="cuda"))
    check_twin(entry, lowered(entry, label, dtype, "cuda"))


@pytest.mark.parametrize("entry", FIRST)
def test_a_replayed_graph_gives_the_same(entry: Entry) -> None:
    assert entry.operator is not None
    op, arguments = entry.operator.overload("triton"), _first(entry)
    expected = [out.clone() for out in outputs_of(op(*arguments))]  # tunes before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = outputs_of(op(*arguments))
    for out in results:
        out.fill_(7)
    graph.replay()
    for got, wanted in zip(results, expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("entry", FIRST)
def test_inductor_gives_the_same(entry: Entry) -> None:
    assert entry.operator is not None
    op, arguments = entry.operator.overload("triton"), _first(entry)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: op(*args), fullgraph=True)
    for got, wanted in zip(outputs_of(compiled(*arguments)), outputs_of(op(*arguments)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entry", FIRST)
def test_results_repeat_bit_for_bit(entry: Entry) -> None:
    assert entry.operator is not None
    op, arguments = entry.operator.overload("triton"), _first(entry)
    first = outputs_of(op(*arguments))
    for _ in range(3):
        for got, wanted in zip(outputs_of(op(*arguments)), first, strict=True):
            assert torch.equal(got, wanted)
