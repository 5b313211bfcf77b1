"""Every Triton op on the registry's samples: values, gradients, PyTorch's rules for ops, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.library import opcheck

from ifdd_kernels import backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry, Maker, backward_arguments
from ifdd_kernels.triton import interpreted
from ops.backend_checks import check_backend, lowered
from ops.cases import everyday, nightly, with_gradients
from ops.devices import DTYPES, affordable, short

WRITTEN = [REGISTRY[name] for name, operator in OPERATORS.items() if "triton" in operator.backends]
DEVICE = "cpu" if interpreted() else "cuda"
#: Interpreted for seconds per sample; test_pool_tokens.py and test_attention.py try other sizes, too.
SLOW = ("pool_tokens", "pooled_attention")


def _by_day(entry: Entry, label: str, dtype: torch.dtype) -> bool:
    """Two samples in float32, the first in bfloat16 and, of the quick ops, in float16."""
    first = next(sample.label for sample in entry.samples(Maker(torch.float32, "meta")))
    if dtype == torch.float32:
        return label in everyday(entry)
    return label == first and (dtype == torch.bfloat16 or entry.name not in SLOW)


SAMPLES = [
    nightly(
        entry,
        sample.label,
        dtype,
        id=f"{entry.name}-{sample.label}-{short(dtype)}",
        when=not _by_day(entry, sample.label, dtype),
    )
    for entry in WRITTEN
    for sample in entry.samples(Maker(torch.float32))
    for dtype in DTYPES
]
FIRST = [pytest.param(entry, id=entry.name) for entry in WRITTEN]
#: Rules are registered alike for all ops: the interpreter's slow ones wait for the night.
RULED = [
    nightly(entry, id=entry.name, when=not affordable(entry.name, "triton", DEVICE)) for entry in WRITTEN
]
DIFFERENTIABLE = [
    case for case, entry in zip(RULED, WRITTEN, strict=True) if REGISTRY[entry.name].operator.backward
]


def _first(entry: Entry) -> tuple[Any, ...]:
    assert entry.operator is not None
    return with_gradients(next(iter(entry.samples(Maker(torch.float32, DEVICE)))))


@pytest.mark.parametrize(("entry", "label", "dtype"), SAMPLES)
def test_values_and_gradients(entry: Entry, label: str, dtype: torch.dtype) -> None:
    check_backend(entry, lowered(entry, label, dtype, DEVICE))


@pytest.mark.parametrize("entry", RULED)
def test_op_rules(entry: Entry) -> None:
    assert entry.operator is not None
    opcheck(entry.operator.overload("triton"), _first(entry))


@pytest.mark.parametrize("entry", DIFFERENTIABLE)
def test_backward_op_rules(entry: Entry) -> None:
    assert entry.operator is not None
    arguments = backward_arguments(entry.operator, tuple(_detached(_first(entry))))
    opcheck(entry.operator.overload("triton", backward=True), arguments)


def _detached(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]


class _Calls(torch.nn.Module):
    """An op of the Triton family with its arguments that are not tensors."""

    def __init__(self, entry: Entry, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        assert entry.operator is not None
        self.op = entry.operator.overload("triton")
        self.arguments = [None if isinstance(a, torch.Tensor) else (a,) for a in arguments]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        return outputs_of(self.op(*(next(given) if a is None else a[0] for a in self.arguments)))


@pytest.mark.parametrize("entry", RULED)
def test_compiles_and_exports_in_one_graph(entry: Entry) -> None:
    arguments = tuple(_detached(_first(entry)))
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    module = _Calls(entry, arguments)
    expected = module(*tensors)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(*tensors)
    exported = torch.export.export(module, tuple(tensors))
    assert any("_triton" in str(node.target) for node in exported.graph.nodes)
    for results in (compiled, exported.module()(*tensors)):
        for got, wanted in zip(results, expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("entry", FIRST)
def test_float64_is_refused(entry: Entry) -> None:
    assert entry.operator is not None
    sample = next(iter(entry.samples(Maker(torch.float64, DEVICE))))
    assert not backends.can_run(entry.name, "triton", *(a for a in sample.args if torch.is_tensor(a)))
    with pytest.raises(RuntimeError, match=f"{entry.name}: backend 'triton' cannot run: .*float64"):
        entry.operator.overload("triton")(*sample.args)
