"""The machine: what it is, and how fast it copies and multiplies matrices, measured in the same run."""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable, Sequence
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
    """The fields of a row that name the machine."""
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


def measure_rates(
    device: str,
    clock_name: str,
    precisions: Sequence[str],
    budget_s: float = 20.0,
    small: bool = False,
) -> Rates:
    """Best of a few readings each: what the machine can do, not what it does on average.

    By the clock of the benchmarks: rates by one clock do not bound times by another. ``small`` is quick
    and too low, to try a run. Products grow from small ones to 2048 (on a GPU 8192) rows as far as the budget
    allows: on a CPU that multiplies a precision at a hundredth of another's rate the large ones take minutes.
    """
    clock = CLOCKS[clock_name]
    start = time.perf_counter()
    count, side = (1 << 20, 256) if small else (1 << 28, 8192) if device == "cuda" else (1 << 26, 2048)
    copy = _copy_rate(count, device, clock, start + budget_s / (len(precisions) + 1))
    products: dict[str, float] = {}
    for done, name in enumerate(precisions, 1):
        now = time.perf_counter()
        deadline = now + max(0.0, start + budget_s - now) / (len(precisions) + 1 - done)
        products[name] = _product_rate(PRECISIONS[name], side, device, clock, deadline)
    return Rates(copy, products)


def _copy_rate(count: int, device: str, clock: Clock, deadline: float) -> float:
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _best(lambda: target.copy_(source), clock, deadline)


SMALLEST_PRODUCT = 256


def _product_rate(precision: Precision, side: int, device: str, clock: Clock, deadline: float) -> float:
    """The best rate of square products of SMALLEST_PRODUCT, twice that, ... `side` rows: each as long as the
    four calls it takes will end before the deadline, by the rate of the one before.
    """
    rate = 0.0
    rows = min(side, SMALLEST_PRODUCT)
    with precision.context(device):
        while rows <= side:
            a, b = (torch.rand(rows, rows, device=device).to(precision.activations) for _ in range(2))
            flops = 2 * rows**3
            if rate and time.perf_counter() + 4 * flops / rate > deadline:
                break
            ends = deadline if 2 * rows > side else 0.0
            rate = max(rate, flops / _best(functools.partial(torch.matmul, a, b), clock, ends))
            rows *= 2
    return rate


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
