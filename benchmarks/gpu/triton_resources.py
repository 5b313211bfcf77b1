"""Resources of the Triton kernels on a GPU, found without one.

    python -m benchmarks.gpu.triton_resources             compile what is new or changed, write the table
    python -m benchmarks.gpu.triton_resources --check     say what in the table is missing, stale or spills
    python -m benchmarks.gpu.triton_resources --only pool_tokens --recompile

Every launch of every op in :mod:`benchmarks.gpu.resource_cases` is compiled, in each configuration that
sm_80 and sm_90 have for it, through a stand-in driver. The table, ``results/triton_resources.json``, has
registers per thread, shared memory, local stores and loads (spills) and the instructions that multiply.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import Any

import triton

from benchmarks.gpu.compilation import Compilation
from benchmarks.gpu.resource_cases import cases
from benchmarks.suite.launches import launches_of
from benchmarks.suite.place import RESULTS
from ifdd_kernels._operator import OPERATORS

TABLE = RESULTS / "triton_resources.json"
ARCHITECTURES = (80, 90)


def compilations(only: str | None = None) -> Iterator[Compilation]:
    """The launches, each configuration and type once per architecture.

    A kernel that ops share belongs to the first of them; ``only`` leaves out what belongs to others.
    """
    seen: set[str] = set()
    for op, label, arguments in cases():
        operator = OPERATORS[op]
        if "triton" not in operator.backends:
            continue
        for architecture in ARCHITECTURES:
            for launch in launches_of(operator, arguments, architecture):
                for config in launch.configs:
                    found = Compilation(op, label, architecture, launch.kernel, launch.arguments, config)
                    if found.digest not in seen:
                        seen.add(found.digest)
                        if only in (None, op):
                            yield found


def problems(rows: list[dict[str, Any]], declared: list[Compilation]) -> list[str]:
    """Faults of a table: missing and superfluous rows, spills, products that miss the tensor cores."""
    known = {row["digest"] for row in rows}
    wanted = {c.digest: c for c in declared}
    found = [f"{c.name} for sm_{c.architecture}: not in the table" for c in declared if c.digest not in known]
    for row in rows:
        name = f"{row['kernel']} for {row['architecture']}"
        if row["digest"] not in wanted:
            found.append(f"{name}: in the table, but no longer launched")
        if row["spill_stores"] or row["spill_loads"]:
            found.append(f"{name}: spills ({row['spill_stores']} stores, {row['spill_loads']} loads)")
        if row["dots"] and not row["tensor_core"]:
            found.append(f"{name}: has products, but no tensor-core instruction")
    return found


def read() -> list[dict[str, Any]]:
    """Rows of the committed table."""
    if not TABLE.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the table, one row a line."""
    head = {
        "triton": triton.__version__,
        "note": "compiled without a GPU by python -m benchmarks.gpu.triton_resources",
    }
    rows = sorted(rows, key=lambda row: (row["kernel"], row["architecture"]))
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n'
    TABLE.write_text(text, encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compile nothing, list what is wrong")
    parser.add_argument("--only", help="one op; other rows of the table stay as they are")
    parser.add_argument("--recompile", action="store_true", help="also what has not changed")
    options = parser.parse_args()
    declared = list(compilations(options.only))
    rows = read()
    if not options.check:
        digests = {c.digest for c in declared}
        kept = [] if options.recompile else [row for row in rows if row["digest"] in digests]
        if options.only:
            kept += [row for row in rows if f"[{options.only}," not in row["kernel"]]
        done = {row["digest"] for row in kept}
        for number, compilation in enumerate(declared):
            if compilation.digest not in done:
                row = compilation.compile()
                print(f"{number + 1}/{len(declared)}", json.dumps(row), flush=True)
                kept.append(row)
                write(kept)  # a table that was cut off is continued
        rows = kept
        write(rows)
    if options.only:
        rows = [row for row in rows if f"[{options.only}," in row["kernel"]]
    wrong = problems(rows, declared)
    print("\n".join(wrong) or f"{len(rows)} rows, nothing spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
