"""``python -m benchmarks.counted``: what a step starts, moves, computes and keeps on a GPU, by a CPU."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.counted import fused, rows
from benchmarks.counted.rows import Total
from benchmarks.counted.trace import Launch
from benchmarks.counted.workloads import BACKENDS, PRECISIONS, WORKLOADS, Workload
from ifdd import list_models
from ifdd_kernels.triton import interpreted


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted", description=__doc__)
    parser.add_argument("--workload", default="training", help=f"of {','.join(WORKLOADS)}")
    parser.add_argument("--batch", default="16", help="clips, e.g. 1,16")
    parser.add_argument("--frames", default="16", help="of a clip: 8, 16 or 32")
    parser.add_argument("--precision", default="bf16", help=f"of {','.join(PRECISIONS)}")
    parser.add_argument("--backend", default="native", help=f"of {','.join(BACKENDS)}")
    parser.add_argument("--network", default="ifdd_xs", choices=list_models())
    parser.add_argument("--ema-decay", type=float, help="average the weights, as ifdd fit --ema_decay")
    parser.add_argument("--gradient-clip", type=float, help="clip gradients, as ifdd fit --gradient_clip")
    parser.add_argument("--compile", action="store_true", help="estimate the launches left by torch.compile")
    parser.add_argument("--device", default="H200", help="whose rates predict times")
    parser.add_argument("--top", type=int, default=15, help="ops listed, by bytes")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/counted.json)")
    options = parser.parse_args(arguments)
    for name, known in (("workload", WORKLOADS), ("precision", PRECISIONS), ("backend", BACKENDS)):
        values = getattr(options, name).split(",")
        unknown = [value for value in values if value not in known]
        if unknown:
            parser.error(f"--{name}: there is no {unknown[0]!r}; there are {', '.join(known)}")
        setattr(options, name, values)
    for name in ("batch", "frames"):
        values = getattr(options, name).split(",")
        if not all(value.isdecimal() and int(value) for value in values):
            parser.error(f"--{name} must be positive integers, e.g. 1,16; got {getattr(options, name)!r}")
        setattr(options, name, [int(value) for value in values])
    return options


def main(arguments: list[str] | None = None) -> int:
    """Counts every combination that was asked for, prints tables and writes the rows."""
    options = parse(arguments)
    if interpreted() or torch.version.cuda is not None:
        # The interpreter's tiles are others, and a CUDA build asks a driver that is not imagined.
        why = "TRITON_INTERPRET is set" if interpreted() else "PyTorch is built for CUDA"
        print(f"benchmarks.counted: {why}: count with a CPU build of PyTorch and without it", file=sys.stderr)
        return 2
    try:
        rates = rows.datasheet(options.device)
    except ValueError as error:
        print(f"benchmarks.counted: --device: {error}", file=sys.stderr)
        return 2
    found = []
    chosen = itertools.product(
        options.workload, options.batch, options.frames, options.precision, options.backend
    )
    for workload, batch, frames, precision, backend in chosen:
        beside = (
            {"ema_decay": options.ema_decay, "gradient_clip": options.gradient_clip}
            if workload == "training"
            else {}
        )
        case = Workload(workload, batch, frames, precision, backend, options.network, **beside)
        trace = case.trace()
        entry = rows.row(case, trace, options.device)
        found.append(entry)
        print(
            f"\n{workload}, {batch} clips of {frames} frames, {precision}, {backend}, {options.network}: "
            f"{entry['launches']} launches, {entry['bytes_total'] / 1e9:.1f} GB, "
            f"{entry['bytes_outside_products_and_attention'] / 1e9:.1f} GB outside products and attention, "
            f"{entry['kept_for_backward_bytes'] / 2**30:.2f} GiB kept for backward, "
            f"{entry['flops'] / 1e12:.2f} TFLOP, predicted {entry['predicted_ms']:.1f} ms"
        )
        if options.compile:
            left = fused.launches(trace.launches)
            print(f"torch.compile: at least {left} launches if it fuses all it can (an estimate, no count)")
        keys: dict[str, Callable[[Launch], str]] = {
            "phase": lambda launch: launch.phase,
            "kind": lambda launch: launch.kind,
            "part": lambda launch: _part(launch.part),
            "op": lambda launch: f"{launch.phase}: {launch.name}",
        }
        for title, key in keys.items():
            groups = rows.grouped(trace, key, precision, rates)
            if title == "op":
                groups = dict(sorted(groups.items(), key=lambda item: -item[1].bytes)[: options.top])
            _table(title, groups)
    rows.write(found, options.out or rows.RESULT)
    return 0


def _part(name: str) -> str:
    """A module of the first two levels, blocks each for themselves."""
    pieces = name.split(".")
    return ".".join(pieces[:3] if pieces[:2] == ["backbone", "blocks"] else pieces[:1])


def _table(title: str, groups: Mapping[str, Total]) -> None:
    width = max(map(len, (title, *groups)))
    print(f"\n{title:{width}}  launches        GB   TFLOP      ms")
    for name, part in groups.items():
        print(
            f"{name:{width}}  {part.launches:8}  {part.bytes / 1e9:8.3f}  {part.flops / 1e12:6.3f}"
            f"  {part.predicted_ms:6.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
