"""``make gpu-check``: what a GPU can tell in a few minutes, in the order of what matters most.

The machine is taken as it is: nothing is downloaded or installed, and what it lacks is named in the first
line. A native library that was carried along is checked and used, else one is built for this GPU. Then every
native op is compared with float64 at the network's shapes, tested, and timed; after that the training step,
counters, rivals, inference, Triton. Each stage is a process with a limit; a kernel that hangs or faults is
named and costs itself alone. Every row is in the log as soon as it is known, and ``--resume`` goes on after
what a log has.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from benchmarks.gpu import library, sources
from benchmarks.gpu.host import Machine, first_line, look
from benchmarks.gpu.library import STOP
from benchmarks.gpu.stages import Runner, Stage
from benchmarks.gpu.steps import BUILD_LIMIT_S, Step, done, only, table, walk
from benchmarks.gpu.visit import first_call, second_call
from benchmarks.suite import place, results

BUDGET_S = 340.0
"""Of one call: two of them, with the machine's own start, fit into fifteen minutes."""


def prepare(runner: Runner, machine: Machine) -> str:
    """The native library, carried or built, loaded once: why nothing can be measured, or nothing."""
    problem = library.find(cuda=True).problem if machine.device == "cuda" else ""
    if not problem:
        outcome = runner.run(look_at_library(machine))
        if outcome.status == "ok":
            return ""
        rows = results.read(runner.log, "library")
        if not (rows and rows[-1].get("for_another_gpu")):
            return outcome.detail
        problem = rows[-1]["problem"]
    runner.say(f"!!! native library: {problem}; building one")
    built = runner.run(library.build(machine.capability, BUILD_LIMIT_S))
    if built.status != "ok":
        return f"no native library: {problem}, and the build: {built.status}, {built.detail}"
    outcome = runner.run(look_at_library(machine))
    return "" if outcome.status == "ok" else outcome.detail


def look_at_library(machine: Machine) -> Stage:
    """The stage that loads the library beside PyTorch, and ends the check where CUDA kernels are missing."""
    command = (sys.executable, "-m", "benchmarks.gpu.library", "--device", machine.device)
    # The first import of torch on a machine reads gigabytes.
    return Stage("library", command, 150, sources=sources.digest())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__)
    budget = float(os.environ.get("GPU_BUDGET_S", BUDGET_S))
    out = os.environ.get("OUT")
    parser.add_argument("--budget-s", type=float, default=budget, help="wall time of everything")
    parser.add_argument(
        "--out", type=Path, default=Path(out) if out else None, help="folder of the log (default: $OUT)"
    )
    parser.add_argument(
        "--resume", nargs="?", type=Path, const=Path(), metavar="LOG",
        help="a second call: what the log in the folder, or another log, does not have, and more",
    )  # fmt: skip
    parser.add_argument("--only", help="only these steps, e.g. 'native ops,training step'")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the check itself"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, with estimates")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and options.out is None and not options.dry_run:
        parser.error("--device cpu only tries the check: say with --out where its log goes")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if a stage failed or was stopped, :data:`STOP` where nothing could be measured."""
    options = parse(arguments)
    machine = replace(look(options.device), patience=max(1.0, options.budget_s / BUDGET_S))
    steps = first_call(machine) if options.resume is None else second_call(machine)
    if options.only:
        wanted = options.only.split(",")
        unknown = sorted(set(wanted) - {step.name for step in steps})
        if unknown:
            raise SystemExit(f"gpu-check: no step {', '.join(map(repr, unknown))}; there are "
                             f"{', '.join(step.name for step in steps)}")  # fmt: skip
        steps = only(steps, wanted)
    folder = options.out or place.results_folder(machine.device, machine.name)
    log = folder / "gpu-check.jsonl"
    if options.dry_run:
        print(table(steps, builds=machine.device == "cuda" and bool(library.find().problem)))
        return 0
    return check(machine, steps, log, options.budget_s, options.resume)


def check(
    machine: Machine, steps: Sequence[Step], log: Path, budget_s: float, resume: Path | None = None
) -> int:
    """Runs everything that a log does not have yet, and appends to it."""
    if resume is not None and resume != Path():
        earlier = resume.read_bytes()
        log.parent.mkdir(parents=True, exist_ok=True)
        if resume.resolve() != log.resolve():
            log.write_bytes(earlier)
    elif resume is None and log.exists():
        log.rename(log.with_name(f"{log.stem}-{time.strftime('%Y%m%d-%H%M%S')}{log.suffix}"))
    runner = Runner(log, log.with_suffix(".txt"), budget_s, say=lambda line: print(line, flush=True))
    facts = first_line(machine)
    missing = facts["missing"]
    runner.say(
        f"{facts['device']}, Python {facts['python']}, "
        f"{', '.join(f'{name} {version}' for name, version in facts['versions'].items())}; "  # type: ignore[attr-defined]
        f"missing: {', '.join(missing) or 'nothing'}; commit {facts['commit']}; library {facts['library']}"  # type: ignore[arg-type]
    )
    runner.writer.write("start", **facts)

    def cut_off(number: int, _: FrameType | None) -> None:
        runner.stop()
        runner.writer.write(
            "stage", stage="check", status="cut", seconds=0.0, detail=signal.Signals(number).name, sources=""
        )

    before = signal.signal(signal.SIGTERM, cut_off)
    try:
        problem = prepare(runner, machine)
        if problem:
            runner.say(f"!!! STOP, nothing can be measured: {problem}")
            return 128 + signal.SIGTERM if runner.stopped else STOP
        left = steps if resume is None else done(log, steps)
        outcomes = walk(runner, left)
    finally:
        signal.signal(signal.SIGTERM, before)
    for outcome in outcomes:
        runner.say(f"{outcome.status:8s} {outcome.name:28s} {outcome.seconds:6.0f} s  {outcome.detail[:300]}")
    runner.say(f"{budget_s - runner.left:.0f} s in all; log: {log}")
    if runner.stopped:
        return 128 + signal.SIGTERM
    return 1 if any(outcome.status not in ("ok", "skipped") for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
