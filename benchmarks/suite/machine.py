"""The machine: what it is, and how fast it copies and multiplies matrices, measured in the same run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ifdd_kernels
from benchmarks.suite import place
from benchmarks.suite.precision import PRECISIONS, Precision
from benchmarks.suite.timing import CLOCKS, Clock


def device_name(device: str) -> str:
    """Name of the GPU or CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else place.cpu_name()


def results_folder(device: str) -> Path:
    """Where result files of this machine's device are kept."""
    return place.results_folder(device, device_name(device))


def describe(device: str, threads: int) -> dict[str, Any]:
    """What a row says of where it was measured."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "driver": place.output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or None
        if device == "cuda"
        else None,
        "os": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "library": ifdd_kernels.__version__,
        "native": ifdd_kernels.build_info()["native"],
        "commit": place.commit(),
        "threads": threads,
    }
    if device == "cpu":
        facts["instruction_set"] = ifdd_kernels.build_info().get("instruction_set")
    return facts


def _triton_version() -> str | None:
    # Not from metadata: builds of torch bring it under other names.
    try:
        import triton
    except ImportError:
        return None
    version: str = triton.__version__
    return version


@dataclass(frozen=True)
class Rates:
    """Measured bytes/s of a copy (read and written bytes both count) and FLOP/s of matrix products."""

    copy: float
    products: dict[str, float]

    def least_seconds(self, bytes_moved: int, flops: int, precision: str) -> float:
        """No kernel of this traffic and work is faster than the copy and the product were."""
        return max(bytes_moved / self.copy, flops / self.products[precision])


def measure_rates(device: str, clock_name: str, budget_s: float = 20.0, small: bool = False) -> Rates:
    """Best of a few readings each: what the machine can do, not what it does on average.

    By the clock of the benchmarks: rates by one clock are no roof for times by another. ``small`` is quick
    and too low, to try a run.
    """
    clock = CLOCKS[clock_name]
    deadline = time.perf_counter() + budget_s
    count, side = (1 << 20, 256) if small else (1 << 28, 8192) if device == "cuda" else (1 << 26, 2048)
    copy = _copy_rate(count, device, clock, deadline)
    products = {
        name: _product_rate(precision, side, device, clock, deadline)
        for name, precision in PRECISIONS.items()
        if device in precision.devices
    }
    return Rates(copy, products)


def _copy_rate(count: int, device: str, clock: Clock, deadline: float) -> float:
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _best(lambda: target.copy_(source), clock, deadline)


def _product_rate(precision: Precision, side: int, device: str, clock: Clock, deadline: float) -> float:
    a, b = (torch.rand(side, side, device=device).to(precision.activations) for _ in range(2))
    with precision.context(device):
        return 2 * side**3 / _best(lambda: a @ b, clock, deadline)


def _best(call: Callable[[], object], clock: Clock, deadline: float) -> float:
    """Smallest of three readings, or more while there is time."""
    call()
    readings: list[float] = []
    while len(readings) < 3 or (len(readings) < 10 and time.perf_counter() < deadline):
        readings.append(clock(call, 1))
    return min(readings)


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
