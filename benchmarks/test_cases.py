"""Every case of the network under pytest-benchmark, each result checked before it is timed.

    pytest benchmarks/ [-k "issm and native"] [--benchmark-autosave] [--benchmark-compare]

Pedantic mode: a fixed number of rounds, with a clock that waits for the GPU. ``python -m benchmarks`` is the
instrument for numbers that are published; contenders do not take turns here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.rivals.contender import Contender
from benchmarks.suite import cases, plan
from benchmarks.suite.cases import Case
from benchmarks.suite.correctness import Gate
from benchmarks.suite.precision import PRECISIONS
from benchmarks.suite.runner import PASSES, checked, truth_of
from benchmarks.suite.shapes import network_shape
from benchmarks.suite.timing import synchronised_clock
from ifdd_kernels.registry import Maker

pytest.importorskip("pytest_benchmark")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS, WARM_UP = 5, 1


def _cases() -> list[Case]:
    shape = network_shape(plan.NETWORK)
    blocks = [
        make(shape, block, 1, DEVICE)
        for make in (cases.pool_tokens, cases.pooled_attention)
        for block in shape.blocks
    ]
    issm = [cases.issm(shape, batch, DEVICE) for batch in (1, 16)]
    ladm = [cases.ladm(shape, batch, DEVICE) for batch in (1, 16)]
    return [*issm, *ladm, *blocks, *cases.small_ops(shape, 1, DEVICE)]


def _parameters() -> list[Any]:
    found = []
    for case in _cases():
        for contender in case.contenders:
            if contender.compiled is not None:
                continue
            for pass_name in PASSES if case.differentiable else ("inference",):
                name = f"{case.name}-{case.label}-{case.batch}-{contender.name}-{pass_name}"
                found.append(pytest.param(case, contender, pass_name, id=name))
    return found


# The plugin's own clock does not wait for a GPU.
@pytest.mark.benchmark(timer=synchronised_clock)
@pytest.mark.parametrize(("case", "contender", "pass_name"), _parameters())
def test_case(case: Case, contender: Contender, pass_name: str, benchmark: Any) -> None:
    precision, training = PRECISIONS["fp32"], PASSES[pass_name]
    inputs = case.make(Maker(case.dtype or precision.activations, DEVICE))
    with precision.context(DEVICE):
        truth = truth_of(case, inputs, training, DEVICE)
        # Without the original beside it, half of the digits are asked of each.
        bounds = Gate(precision.eps, None, case.discontinuous)
        step, errors, peak = checked(case, contender, inputs, training, truth, bounds, DEVICE)
        benchmark.group = f"{case.name} ({case.label}), B={case.batch}, {pass_name}"
        benchmark.extra_info.update(error=errors.output, peak_bytes=peak)
        benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=WARM_UP)
