"""An estimate of the launches that are left where Inductor compiles a step.

A rule over the eager launches, for Inductor's own decisions cannot be read without a CUDA driver: lowering a
Triton kernel of this library asks one. Products, attention and the kernels of this library stay, and so does
the optimiser, which is not compiled. Each run of other ops between two of these becomes one kernel. That is
the most that fusion can do: a reduction in the middle of a run, or ops that have nothing to do with each
other, start a kernel more.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.counted.trace import Launch

#: Phases that stay as they are.
EAGER = ("mixing", "optimiser")


def launches(trace: Iterable[Launch]) -> int:
    """Launches after fusion by the rule above."""
    count, before = 0, ""
    for launch in trace:
        group = launch.phase if launch.kind == "everything else" and launch.phase not in EAGER else ""
        if not group:
            count += launch.launches
        elif group != before:
            count += 1
        before = group
    return count
