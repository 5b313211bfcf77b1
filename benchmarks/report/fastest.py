"""The choice of ``backend="auto"`` on a GPU: ``python -m benchmarks.report.fastest RESULT.jsonl...``.

Reads the times of ops, prints the table that follows from them (see :mod:`ifdd_kernels._measured`), and
writes it to a file or into the package. A backend is taken in place of the one that ``auto`` assumes if it is
faster beyond the noise: its upper quartile is below the other's lower one. An op where that happens anywhere
has an entry for every shape that was measured: the nearest tells on which side of a crossing a new shape is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.suite import results
from benchmarks.suite.results import Row
from ifdd_kernels import _measured
from ifdd_kernels._measured import Entry, Table
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.backends import BACKENDS

ASSUMED = ("native", "triton", "reference")
"""Order of ``auto`` without measurements: the first of these that runs."""
CALLS = ("graph", "eager")
"""Modes of the times, the preferred first: launches from Python differ from host to host."""

Identity = tuple[str, str, str, bool, tuple[int, ...]]
"""Device, op, dtype, whether training, sizes."""


def measured(paths: Sequence[Path]) -> dict[Identity, dict[str, dict[str, tuple[Row, str]]]]:
    """GPU times by what was measured, mode and backend, each with the name of its file; later rows win.

    TF32 is left out: ``auto`` does not look at PyTorch's switches.
    """
    found: dict[Identity, dict[str, dict[str, tuple[Row, str]]]] = {}
    for path in paths:
        for row in results.read(path, "time"):
            if row["clock"] != "cuda" or row["precision"] == "tf32" or "sizes" not in row:
                continue
            if row["case"] in OPERATORS and row["contender"] in BACKENDS:
                sizes, training = tuple(row["sizes"]), row["pass"] == "training"
                identity = (row["device"], row["case"], row["dtype"], training, sizes)
                modes = found.setdefault(identity, {})
                modes.setdefault(row["mode"], {})[row["contender"]] = row, path.name
    return found


def choose(modes: Mapping[str, Mapping[str, tuple[Row, str]]]) -> tuple[str, str, bool]:
    """Backend and file for one shape, and whether it is not the assumed one: faster beyond the noise.

    Modes are not compared with each other; the one taken is the first that the assumed backend has.
    """
    assumed = next(name for name in ASSUMED if any(name in rows for rows in modes.values()))
    rows = next(modes[mode] for mode in CALLS if assumed in modes.get(mode, {}))
    fastest = min(rows, key=lambda name: float(rows[name][0]["median_s"]))
    wins = rows[fastest][0]["high_s"] < rows[assumed][0]["low_s"]
    chosen = fastest if wins else assumed
    return chosen, rows[chosen][1], wins


def table(paths: Sequence[Path]) -> Table:
    """Device -> op -> entries; an op where the assumed backend is nowhere beaten has an empty list."""
    found: Table = {}
    beaten: set[tuple[str, str]] = set()
    for (device, op, dtype, training, sizes), modes in sorted(measured(paths).items()):
        entries = found.setdefault(device, {}).setdefault(op, [])
        if not any(name in rows for rows in modes.values() for name in ASSUMED):
            continue  # nothing to compare with
        backend, file, wins = choose(modes)
        entries.append(Entry(backend, dtype, training, sizes, file))
        if wins:
            beaten.add((device, op))
    return {
        device: {op: entries if (device, op) in beaten else [] for op, entries in ops.items()}
        for device, ops in found.items()
    }


def text(found: Table) -> str:
    """The JSON form, one entry a line; ops and devices without entries are left out."""
    devices = []
    for device, ops in found.items():
        parts = []
        for op, entries in ops.items():
            lines = ",\n".join(f"      {json.dumps(asdict(entry))}" for entry in entries)
            if entries:
                parts.append(f"    {json.dumps(op)}: [\n{lines}\n    ]")
        if parts:
            devices.append(f"  {json.dumps(device)}: {{\n" + ",\n".join(parts) + "\n  }")
    return "{\n" + ",\n".join(devices) + "\n}\n" if devices else "{}\n"


def merged(old: Table, new: Table) -> Table:
    """The old table with the ops that were measured now replaced, on the devices they were measured on."""
    return {device: {**old.get(device, {}), **new.get(device, {})} for device in {**old, **new}}


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.fastest", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="result files of GPUs")
    parser.add_argument("--out", type=Path, help="also write the proposed table to this file")
    parser.add_argument(
        "--write", action="store_true", help=f"put it into the package's {_measured.PATH.name}"
    )
    options = parser.parse_args(arguments)
    proposed = table(options.results)
    print(text(proposed), end="")
    if options.out:
        options.out.write_text(text(proposed))
    if options.write:
        kept = _measured.parse(json.loads(_measured.PATH.read_text()))
        _measured.PATH.write_text(text(merged(kept, proposed)))
    ops = [entries for found in proposed.values() for entries in found.values()]
    won = sum(bool(entries) for entries in ops)
    print(f"{len(ops)} ops measured on {len(proposed)} GPUs; auto's assumption is beaten in {won} of them")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
