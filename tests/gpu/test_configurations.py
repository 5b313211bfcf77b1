"""Every configuration of every Triton kernel, at a shape of the network and at one that no tile divides.

Elsewhere only the default runs: memory is poisoned there, which asks for results that no stopwatch decides.
In the interpreter a configuration is its tiles.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.errors import OutOfResources

from ifdd_kernels._operator import OPERATORS, Gradient
from ifdd_kernels.registry import REGISTRY
from ifdd_kernels.triton._runtime import Kernel, Launch, captured_launches, forced_configuration
from ifdd_kernels.triton._tuning import Config
from ops.cases import outputs_of
from ops.devices import DTYPES, NETWORKS, call_of, devices, parameter, short
from ops.network import Instance, instances, ragged
from ops.twins import check_call

WRITTEN = [name for name, operator in OPERATORS.items() if "triton" in operator.twins]
BATCH = 2


def launches(call: Instance, dtype: torch.dtype) -> list[Launch]:
    """What a call and its gradients launch; nothing is computed."""
    operator = OPERATORS[call.op]
    module = importlib.import_module(f"ifdd_kernels.triton.{call.op}")
    args = call.empty(BATCH, dtype, "meta")
    with captured_launches() as found:
        outputs = outputs_of(module.forward(*args))
        if operator.backward is not None:
            wanted = operator.backward.arguments(args, outputs)
            module.backward(
                *(torch.empty_like(outputs[a.output]) if isinstance(a, Gradient) else a for a in wanted)
            )
    return found


def choices(call: Instance, dtype: torch.dtype) -> dict[str, int]:
    """Kernels that have several configurations for a call, and how many."""
    found: dict[str, int] = {}
    for launch in launches(call, dtype):
        found[launch.kernel.name] = max(found.get(launch.kernel.name, 0), len(launch.configs))
    return {kernel: count for kernel, count in found.items() if count > 1}


def selection(device: str, op: str) -> Iterator[Instance]:
    """The network's call with the most configurations, the smallest of such, and a ragged one."""
    calls = [call for call in instances(NETWORKS[device]) if call.op == op]

    def rank(call: Instance) -> tuple[int, int]:
        return -sum(choices(call, torch.bfloat16).values()), call.largest

    yield min(calls, key=rank)
    yield from (call for call in ragged() if call.op == op)


def _cases(device: str) -> Iterator[Any]:
    """In the interpreter, where tiles for a device are slow: the ragged call, each kernel in one op."""
    seen: set[str] = set()
    for op in WRITTEN:
        for call in selection(device, op):
            if device == "cpu" and call.label != "ragged":
                continue
            for dtype in DTYPES if device == "cuda" else (torch.bfloat16,):
                for kernel, count in choices(call, dtype).items():
                    if device == "cpu" and kernel in seen:
                        continue
                    seen.add(kernel)
                    for number in range(count):
                        name = f"{op}-{kernel}-{number}-{call.label}-{short(dtype)}"
                        yield parameter(device, call, kernel, number, dtype, name=name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU's tests, and the GPU's where they are wanted."""
    if "call" in metafunc.fixturenames:
        found = [one for device in devices(metafunc.config) for one in _cases(device)]
        metafunc.parametrize(("device", "call", "kernel", "number", "dtype"), found)


def test_values_and_gradients(
    device: str, call: Instance, kernel: str, number: int, dtype: torch.dtype
) -> None:
    entry, used = REGISTRY[call.op], []

    def choose(launched: Kernel, configs: Sequence[Config]) -> Config | None:
        if launched.name != kernel:
            return None
        used.append(configs[min(number, len(configs) - 1)])
        return used[-1]

    run = call_of(entry, "triton", device, dtype)
    sample = call.sample(BATCH, dtype, device)
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
def test_several_kernels_have_a_choice(op: str) -> None:
    """Launches are seen without a device: those of a kernel left out here would not be tested there."""
    for call in selection("cpu", op):
        names = {launch.kernel.name for launch in launches(call, torch.bfloat16)}
        assert names
        for launch in launches(call, torch.bfloat16):
            assert launch.configs
            assert all(isinstance(config, Config) for config in launch.configs)


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
