"""Clocks, and rounds in which all contenders take turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
#: Seconds of one call, from the time of a number of calls in a row.
Clock = Callable[[Call, int], float]

SHORTEST = 2e-3
"""Calls are repeated until one reading takes this long: clocks and turns cost microseconds."""


def _host_clock(now: Callable[[], float]) -> Clock:
    def clock(call: Call, repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return (now() - start) / repeats

    return clock


def cuda_clock(call: Call, repeats: int) -> float:
    """Time between two events on the current stream around the calls, some of which are several steps."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds * 1e-3 / repeats / getattr(call, "steps", 1)


def synchronised_clock() -> float:
    """``time.perf_counter`` after everything queued on the GPU is done: for timers that do not wait."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: dict[str, Clock] = {
    "wall": _host_clock(time.perf_counter),
    # All threads of the process. On a shared machine this is what a call costs; wall time is who else runs.
    "cpu": _host_clock(time.process_time),
    "cuda": cuda_clock,
}


@dataclass(frozen=True)
class Summary:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Distance of the quartiles relative to the median."""
        return (self.high - self.low) / self.median if self.median > 0 else math.inf


def summary(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), low, high, len(values))


def interleave(
    calls: Mapping[str, Call], clock: Clock, budget_s: float, fewest: int = 3, most: int = 25
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one reading in each round; they take turns, in alternating order.

    Ratios are then taken inside a round, so a machine that slows down for a while slows both sides. One
    round warms up. ``budget_s`` ends the rounds once there are ``fewest``.
    """
    if not calls:
        return {}
    start = time.perf_counter()
    repeats = {}
    for name, call in calls.items():
        call()
        once = max(clock(call, 1), 1e-7)
        repeats[name] = max(1, min(1000, math.ceil(SHORTEST / once)))
    readings: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(most):
        if turn >= fewest and time.perf_counter() - start > budget_s:
            break
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in order:
            readings[name].append(clock(calls[name], repeats[name]))
    return readings


def ratios(anchor: Sequence[float], own: Sequence[float]) -> Summary:
    """Of the anchor's time to one's own, round by round: how many times faster."""
    return summary([theirs / mine for theirs, mine in zip(anchor, own, strict=True)])
