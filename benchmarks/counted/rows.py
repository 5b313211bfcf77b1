"""Rows of results from what was counted, and predicted times."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.counted.trace import KINDS, Launch, Trace
from benchmarks.counted.workloads import Workload
from benchmarks.suite.datasheet import Datasheet, find
from benchmarks.suite.place import RESULTS, commit

RESULT = RESULTS / "counted.json"
#: Shares of the datasheet's rates that large copies and products reach; the shortest launch of a CUDA graph.
COPY_SHARE, PRODUCT_SHARE, SHORTEST_US = 0.85, 0.65, 2.0


@dataclass(frozen=True)
class Total:
    """Of several launches."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    predicted_ms: float = 0.0


def datasheet(device: str) -> Datasheet:
    """The rates of a device.

    Raises:
        ValueError: none are known.
    """
    sheet = find(device)
    if sheet is None:
        raise ValueError(
            f"no rates of {device!r} are known: benchmarks/suite/datasheet.py has those of others"
        )
    return sheet


def predicted_ms(launch: Launch, precision: str, rates: Datasheet) -> float:
    """The time of a launch that reaches the stated shares: the longer of its bytes and its FLOPs.

    Products of float32 tensors count as float32 on the vector units, which is PyTorch's default.
    """
    peak = rates.fp32 if precision == "fp32" else rates.half
    moved = launch.bytes / (COPY_SHARE * rates.bandwidth * 1e12)
    computed = launch.flops / (PRODUCT_SHARE * peak * 1e12)
    return 1e3 * max(moved, computed, launch.launches * SHORTEST_US * 1e-6)


def total(launches: Iterable[Launch], precision: str, rates: Datasheet) -> Total:
    """Sums."""
    chosen = list(launches)
    return Total(
        sum(launch.launches for launch in chosen),
        sum(launch.bytes for launch in chosen),
        sum(launch.flops for launch in chosen),
        sum(predicted_ms(launch, precision, rates) for launch in chosen),
    )


def grouped(trace: Trace, key: Callable[[Launch], str], precision: str, rates: Datasheet) -> dict[str, Total]:
    """Sums by a property, in order of first appearance."""
    groups: dict[str, list[Launch]] = defaultdict(list)
    for launch in trace.launches:
        groups[key(launch)].append(launch)
    return {name: total(group, precision, rates) for name, group in groups.items()}


def row(workload: Workload, trace: Trace, device: str = "H200") -> dict[str, Any]:
    """The row of the result file."""
    rates = datasheet(device)
    by_phase = grouped(trace, lambda launch: launch.phase, workload.precision, rates)
    by_kind = grouped(trace, lambda launch: launch.kind, workload.precision, rates)
    whole = total(trace.launches, workload.precision, rates)
    named = {name: value for name, value in asdict(workload).items() if value not in (None, {})}
    kept = trace.marks["forward ends"] - trace.marks["forward begins"] if trace.marks else 0
    return {
        **named,
        "launches": whole.launches,
        "launches_by_phase": {name: part.launches for name, part in by_phase.items()},
        "bytes_total": whole.bytes,
        "bytes_outside_products_and_attention": sum(
            by_kind[kind].bytes for kind in KINDS[2:] if kind in by_kind
        ),
        "bytes_by_kind": {kind: by_kind[kind].bytes for kind in KINDS if kind in by_kind},
        "kept_for_backward_bytes": kept,
        "peak_bytes": trace.peak,
        "flops": whole.flops,
        "predicted_ms": round(whole.predicted_ms, 3),
        "device": rates.device,
        "counted": trace.digest(),
        "commit": commit(),
    }


def write(rows: Sequence[dict[str, Any]], path: Path = RESULT) -> None:
    """Replaces rows of the same workloads in the result file, and adds the others."""
    names = ("workload", "batch", "frames", "precision", "backend", "network", "ema_decay", "gradient_clip")

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(entry.get(name) for name in names)

    kept = json.loads(path.read_text()) if path.exists() else []
    every = {key(entry): entry for entry in (*kept, *rows)}
    path.write_text(json.dumps(list(every.values()), indent=1) + "\n")
