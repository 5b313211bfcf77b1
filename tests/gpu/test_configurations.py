"""Every configuration of every Triton kernel, at a shape of the network and at one that no tile divides.

Elsewhere only the default runs: nothing is timed, and earlier choices are not looked up (conftest.py).
In the interpreter a configuration is its tiles.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.errors import OutOfResources

from benchmarks.gpu.network_calls import Instance
from benchmarks.gpu.questions import CONFIGURED_BATCH, CONFIGURED_DTYPES, configured_calls
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.triton._runtime import (
    Kernel,
    Launch,
    architecture,
    captured_launches,
    forced_configuration,
)
from ifdd_kernels.triton._tuning import Config
from ops.backend_checks import check_call, lowered
from ops.devices import call_of, devices, parameter, short

WRITTEN = [name for name, operator in OPERATORS.items() if "triton" in operator.backends]


@dataclass(frozen=True)
class Case:
    """An op with arguments: without values on a device, and with."""

    op: str
    label: str
    empty: Callable[[torch.dtype], tuple[Any, ...]]
    sample: Callable[[torch.dtype, str], Sample]


def _of_call(call: Instance) -> Case:
    return Case(
        call.op,
        call.label,
        lambda dtype: call.empty(CONFIGURED_BATCH, dtype, "meta"),
        lambda dtype, device: call.sample(CONFIGURED_BATCH, dtype, device),
    )


def _of_sample(op: str, label: str) -> Case:
    entry = REGISTRY[op]
    return Case(
        op,
        label,
        lambda dtype: lowered(entry, label, dtype, "meta").args,
        lambda dtype, device: lowered(entry, label, dtype, device),
    )


def launches(case: Case, dtype: torch.dtype) -> list[Launch]:
    """The launches of an op and its gradients; nothing is computed."""
    operator = OPERATORS[case.op]
    module = importlib.import_module(f"ifdd_kernels.triton.{case.op}")
    args = case.empty(dtype)
    with captured_launches() as found:
        outputs = outputs_of(module.forward(*args))
        if operator.wiring is not None:
            gradients = [torch.empty_like(output) for output in outputs]
            module.backward(*operator.wiring.arguments(args, outputs, gradients))
    return found


def choices(case: Case, dtype: torch.dtype) -> dict[str, int]:
    """Kernels that have several configurations for a call, and how many."""
    found: dict[str, int] = {}
    for launch in launches(case, dtype):
        found[launch.kernel.name] = max(found.get(launch.kernel.name, 0), len(launch.configs))
    return {kernel: count for kernel, count in found.items() if count > 1}


def selection(device: str, op: str) -> Iterator[Case]:
    """The calls that are compiled ahead in every configuration.

    The interpreter, to which tiles for a device are dear, gets the smallest of the registry's samples in
    which the most kernels have a choice.
    """
    if device == "cpu":
        labels = [s.label for s in REGISTRY[op].samples(Maker(torch.bfloat16, "meta")) if s.args[0].numel()]
        cases = [_of_sample(op, label) for label in labels]
        yield min(
            cases,
            key=lambda case: (-len(choices(case, torch.bfloat16)), case.empty(torch.bfloat16)[0].numel()),
        )
        return
    yield from (_of_call(call) for call in configured_calls(op, architecture()))


def _cases(device: str) -> Iterator[Any]:
    """On the CPU each kernel in one op, by day in one configuration."""
    seen: set[str] = set()
    for op in WRITTEN:
        for case in selection(device, op):
            for dtype in CONFIGURED_DTYPES if device == "cuda" else CONFIGURED_DTYPES[:1]:
                for kernel, count in choices(case, dtype).items():
                    if device == "cpu" and kernel in seen:
                        continue
                    seen.add(kernel)
                    for number in range(count):
                        name = f"{op}-{kernel}-{number}-{case.label}-{short(dtype)}"
                        others = number < count - 1
                        yield parameter(device, case, kernel, number, dtype, name=name, nightly=others)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    if "case" in metafunc.fixturenames:
        found = [one for device in devices(metafunc.config) for one in _cases(device)]
        metafunc.parametrize(("device", "case", "kernel", "number", "dtype"), found)


def test_values_and_gradients(device: str, case: Case, kernel: str, number: int, dtype: torch.dtype) -> None:
    entry, used = REGISTRY[case.op], []

    def choose(launched: Kernel, configs: Sequence[Config]) -> Config | None:
        if launched.name != kernel:
            return None
        used.append(configs[min(number, len(configs) - 1)])
        return used[-1]

    run = call_of(entry, "triton", device, dtype)
    sample = case.sample(dtype, device)
    try:
        with forced_configuration(choose):
            check_call(entry, sample, run, against_eager=True)
    except OutOfResources as error:
        if number == 0:  # the default must run on every device
            raise
        pytest.skip(f"this device does not have what {used[-1]} needs: {error}")
    except AssertionError as error:
        raise AssertionError(f"{kernel} in {used[-1]}: {error}") from error
    assert used, f"{kernel} was not launched"


@pytest.mark.parametrize("op", WRITTEN)
def test_every_kernel_of_an_op_is_seen(op: str) -> None:
    """Launches are noted without a device: a kernel that is left out here would not be tested there."""
    module = importlib.import_module(f"ifdd_kernels.triton.{op}")
    written = {value.name for value in vars(module).values() if isinstance(value, Kernel)}
    labels = [s.label for s in REGISTRY[op].samples(Maker(torch.bfloat16, "meta"))]
    seen = {
        launch.kernel.name for label in labels for launch in launches(_of_sample(op, label), torch.bfloat16)
    }
    assert written <= seen


def test_a_forced_configuration_is_the_one_that_runs() -> None:
    """Its tiles reach the kernel, in the interpreter too; outside, the choice is the usual one again."""
    from ifdd_kernels.triton import _sums

    partials = torch.randn(70, 40, device="cpu" if not torch.cuda.is_available() else "cuda")
    seen: list[Any] = []
    wanted = Config({"BLOCK_R": 8, "BLOCK_C": 8}, num_warps=1)

    def grid(tiles: Any) -> tuple[int]:
        seen.append((tiles["BLOCK_R"], tiles["BLOCK_C"]))
        return (5,)

    def launch() -> Tensor:
        out = torch.full((40,), float("nan"), device=partials.device)
        widths = {"width_0": 40, "width_1": 0, "width_2": 0, "width_3": 0}
        outs = {f"out_{place}": out for place in range(4)}
        _sums.SUM_PARTIALS(grid, partials=partials, **outs, rows=70, **widths)
        return out

    with forced_configuration(lambda kernel, configs: wanted):
        result = launch()
    assert seen == [(8, 8)]
    torch.testing.assert_close(result, partials.sum(0), rtol=1e-5, atol=1e-5)
    with forced_configuration(lambda kernel, configs: None):
        launch()
    assert seen[1:] != [(8, 8)]
