"""The Triton ops as compilers see them on a GPU, traced without one.

Kernels that are interpreted cannot be traced: there, one test runs this file again in a process that
compiles. Tensors are on the CPU, for autograd wants a device that PyTorch was built for; a stand-in driver
lets the compiler read from each kernel's code which tensors it writes.
"""

from __future__ import annotations

import importlib
import operator as operators
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd

from ifdd_kernels import triton as backend
from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, backward_arguments
from ifdd_kernels.triton import interpreted

compiled_only = pytest.mark.skipif(interpreted(), reason="run by test_in_a_process_that_compiles")
WRITTEN = [o for o in OPERATORS.values() if "triton" in o.backends]
OPAQUE = [o for o in WRITTEN if not o.backends["triton"].traced]
TRACED = [o for o in WRITTEN if o not in OPAQUE]
NAME = operators.attrgetter("name")


@pytest.mark.skipif(not interpreted(), reason="this process compiles")
def test_in_a_process_that_compiles() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--show-capture=no",
        __file__,
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 skipped" in ran.stdout, ran.stdout


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if interpreted():
        yield
        return
    from triton.runtime import driver

    from benchmarks.gpu.compilation import StandIn

    monkeypatch.setattr(backend, "refusal", lambda *_: "")
    monkeypatch.setattr(driver, "_active", StandIn(90))
    torch._dynamo.reset()
    yield


def _sample(operator: Operator) -> tuple[Any, ...]:
    sample = next(iter(REGISTRY[operator.name].samples(Maker(torch.float32))))
    return tuple(
        a.detach().requires_grad_(operator.backward is not None)
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in sample.args
    )


def _launches(operator: Operator, backward: bool, arguments: tuple[Any, ...]) -> list[str]:
    """Kernels an op launches for arguments, in order."""
    from ifdd_kernels.triton._runtime import captured_launches

    module = importlib.import_module(f"ifdd_kernels.triton.{operator.name}")
    with captured_launches(90) as launches:
        (module.backward if backward else module.forward)(*arguments)
    return [launch.kernel.name for launch in launches]


def _kernels(graph: fx.GraphModule) -> list[str]:
    """Kernels a traced graph launches, in order."""
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_functional

    return [
        kernel_side_table.get_kernel(node.kwargs["kernel_idx"]).fn.__name__
        for node in graph.graph.nodes
        if node.target is triton_kernel_wrapper_functional
    ]


def _compiled(operator: Operator, arguments: tuple[Any, ...]) -> tuple[list[fx.GraphModule], Any]:
    """The graphs a compiler makes of an op and its backward, and results with the right shapes."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        results = [
            torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype) if isinstance(n, fx.Node) else n
            for n in graph.graph.output_node().args[0]
        ]
        return make_boxed_func(lambda *given: results)

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        places = iter(given)
        full = (next(places) if isinstance(a, Tensor) else a for a in arguments)
        return outputs_of(operator.overload("triton")(*full))

    traced = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    results = traced(*tensors)
    if operator.backward is not None:
        outputs = operator.differentiable(results)
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
    return graphs, results


@compiled_only
def test_what_needs_a_limit_of_its_registers_is_not_traced() -> None:
    """wrap_triton takes no maxnreg: those kernels would spill in what a compiler launches."""
    from benchmarks.gpu.triton_resources import compilations

    limited = {c.op for c in compilations() if c.config.max_registers is not None}
    assert limited == {name for name, o in OPERATORS.items() if "triton" in o.backends and o not in TRACED}
    assert limited == {"pool_tokens"}


@compiled_only
@pytest.mark.parametrize("operator", OPAQUE, ids=NAME)
def test_compilers_call_ops_that_are_not_traced_as_one(operator: Operator) -> None:
    forward, backward = (
        f"ifdd.{operator.name}_triton.default",
        f"ifdd.{operator.name}_backward_triton.default",
    )
    graphs, _ = _compiled(operator, _sample(operator))
    called = [
        [str(n.target) for n in graph.graph.nodes if str(n.target).startswith("ifdd")] for graph in graphs
    ]
    assert called == [[forward], [backward]]
    assert [_kernels(graph) for graph in graphs] == [[], []]


@compiled_only
@pytest.mark.parametrize("operator", TRACED, ids=NAME)
def test_compilers_trace_into_forward_and_backward(operator: Operator) -> None:
    """One graph each way, of the launches the op makes and nothing opaque; no input is written."""
    arguments = _sample(operator)
    graphs, results = _compiled(operator, arguments)
    for got, wanted in zip(results, outputs_of(operator.overload("reference")(*arguments)), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())
    plain = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    expected = [_launches(operator, False, plain)]
    if operator.backward is not None:
        expected.append(_launches(operator, True, backward_arguments(operator, plain)))
    assert [_kernels(graph) for graph in graphs] == expected
    for graph in graphs:
        names = [str(node.target) for node in graph.graph.nodes]
        assert not [name for name in names if name.startswith("ifdd")], "an opaque op is left"
        assert "aten.copy_.default" not in names, "an input is written"


@compiled_only
@pytest.mark.parametrize("operator", WRITTEN, ids=NAME)
def test_exported_programs_keep_the_op(operator: Operator) -> None:
    arguments = _sample(operator)
    tensors = tuple(a for a in arguments if isinstance(a, Tensor))

    class Call(torch.nn.Module):
        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            places = iter(given)
            full = (next(places) if isinstance(a, Tensor) else a for a in arguments)
            return outputs_of(operator.overload("triton")(*full))

    exported = torch.export.export(Call(), tensors).run_decompositions({})
    called = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert f"ifdd.{operator.name}_triton.default" in called
    assert not any("triton_kernel_wrapper" in name for name in called)
