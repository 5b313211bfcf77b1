"""``python -m benchmarks``: measures in order of importance until the budget ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    # Seconds pass on a busy machine until the modules below are there.
    print("loading PyTorch and the cases", flush=True)

import torch

from benchmarks.suite import machine, memory, overhead, plan, results
from benchmarks.suite.journal import Journal
from benchmarks.suite.machine import Rates
from benchmarks.suite.plan import Task
from benchmarks.suite.precision import PRECISIONS
from benchmarks.suite.results import Writer
from benchmarks.suite.runner import LIMIT_S, MODES, PASSES, Session


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--preset",
        choices=("table", "short", "deployment", "gpu", "small"),
        help="table: of the device; short: make bench; deployment: beside ONNX Runtime and OpenVINO; "
        "gpu: the GPU's table; small: that of a small network",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--ops", help="only these cases, e.g. issm,pool_tokens,model, or overhead")
    parser.add_argument("--labels", help="only these labels, e.g. 'block 0,block 1'")
    parser.add_argument("--contenders", help="only these beside the original, e.g. native,rewrite")
    parser.add_argument("--alone", action="store_true", help="these contenders without the original")
    parser.add_argument("--configurations", action="store_true", help="also each of Triton's kernels")
    parser.add_argument("--check-only", action="store_true", help="compare with float64, time nothing")
    parser.add_argument("--modes", default="graph,eager", help="on a GPU: graph (what can be), eager or both")
    parser.add_argument("--batch", help="only these batch sizes, e.g. 1,16")
    parser.add_argument("--precision", help=f"only these of {','.join(PRECISIONS)}")
    parser.add_argument("--passes", help=f"only these of {','.join(PASSES)}")
    parser.add_argument("--budget-s", type=float, default=900.0, help="seconds for the whole run")
    parser.add_argument("--row-budget-s", type=float, default=3.0, help="seconds of rounds per contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a shared machine")
    parser.add_argument("--out", type=Path, help="result file, appended to")
    options = parser.parse_args(arguments)
    options.preset = options.preset or ("gpu" if options.device == "cuda" else "table")
    if options.alone and not options.contenders:
        parser.error("--alone needs --contenders")
    if options.preset == "deployment" and options.device != "cpu":
        parser.error("--preset deployment measures a CPU: give it --device cpu")
    if not set(options.modes.split(",")) <= set(MODES):
        parser.error(f"--modes must be of {','.join(MODES)}, got {options.modes}")
    return options


def _mistake(options: argparse.Namespace) -> str | None:
    """The requests that cannot be measured here."""
    tasks = list(_tasks(options))
    for option, choice, known in (
        ("--ops", options.ops, {task.case.name for task in tasks} | {"overhead"}),
        ("--precision", options.precision, set(PRECISIONS)),
        ("--passes", options.passes, set(PASSES)),
    ):
        unknown = _unknown(choice, known)
        if unknown:
            return f"{option}: there is no {unknown}; there are {', '.join(sorted(known))}"
    cases = [task.case for task in tasks if _wanted(options.ops, task.case.name)]
    if not cases:
        return None  # the overhead alone
    where = f"the {options.preset} plan of a {options.device} has" + (
        f" for --ops {options.ops}" if options.ops else ""
    )
    contenders = {contender.name for case in cases for contender in case.contenders}
    for option, choice, known in (
        ("--labels", options.labels, {case.label for case in cases}),
        ("--batch", options.batch, {str(case.batch) for case in cases}),
        ("--contenders", options.contenders, contenders),
    ):
        unknown = _unknown(choice, known)
        if unknown:
            return f"{option}: there is no {unknown}; {where}: {', '.join(sorted(known, key=_in_order))}"
    return _refused(options)


def _refused(options: argparse.Namespace) -> str | None:
    """The contenders that were asked for by name and run in none of the tasks that have them."""
    wanted = options.contenders.split(",") if options.contenders else []
    reasons: dict[str, set[str]] = {name: set() for name in wanted}
    for task in selected(options) if wanted else ():
        for contender in task.case.contenders:
            if contender.name in reasons:
                reasons[contender.name].add(contender.refusal(PRECISIONS[task.precision].activations))
    for name, found in reasons.items():
        if found and "" not in found:
            return f"--contenders: {name} does not run here: {'; '.join(sorted(found))}"
    return None


def _unknown(choice: str | None, known: set[str]) -> str | None:
    unknown = [] if choice is None else [value for value in choice.split(",") if value not in known]
    return ", ".join(repr(value) for value in unknown) or None


def _in_order(label: str) -> tuple[str, int, str]:
    """Sorts 'block 10' behind 'block 9', and 16 behind 4."""
    word = label.rstrip("0123456789")
    return word, int(label[len(word) :] or 0), label


def _tasks(options: argparse.Namespace) -> Iterator[Task]:
    if options.preset == "deployment":
        return plan.deployment()
    if options.preset in ("table", "short") and options.device == "cpu":
        return plan.cpu(options.preset == "short")
    return plan.gpu(options.device, plan.SMALL if options.preset == "small" else plan.NETWORK)


def selected(options: argparse.Namespace) -> Iterator[Task]:
    """The tasks of the preset that the options leave."""
    for task in _tasks(options):
        case = task.case
        if not (
            options.device in PRECISIONS[task.precision].devices
            and _wanted(options.ops, case.name)
            and _wanted(options.labels, case.label)
            and _wanted(options.batch, str(case.batch))
            and _wanted(options.precision, task.precision)
            and _wanted(options.passes, task.pass_name)
        ):
            continue
        if options.contenders:
            names = options.contenders.split(",")
            if not {contender.name for contender in case.contenders} & (set(names) - {case.anchor}):
                continue
            case = case.only(names if options.alone else (case.anchor, *names))
        yield Task(case, task.precision, task.pass_name)


def _wanted(choice: str | None, value: str) -> bool:
    return choice is None or value in choice.split(",")


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if a result was wrong or a contender broke.

    Also 1 where nothing was measured, and where a check of a GPU watches and cases were left out for want of
    time: its stage is not done. By itself the command measures what the budget has room for. 2 for options
    that leave nothing to measure.
    """
    start = time.perf_counter()
    options = parse(arguments)
    # A check of a GPU names what a device may lack, and goes on without it.
    mistake = None if Journal.of_process().path else _mistake(options)
    if mistake:
        print(f"python -m benchmarks: error: {mistake}", file=sys.stderr)
        return 2
    tasks = list(selected(options))
    if not tasks and not _wanted(options.ops, "overhead"):
        say("these options leave nothing of the plan to measure")
        return 2
    torch.set_num_threads(options.threads)
    journal = Journal.of_process()
    facts = journal.facts or machine.describe(options.device, options.threads)
    on_cpu = options.device == "cpu"
    facts["freed_memory_kept"] = on_cpu and memory.keep_freed()
    name = f"{options.preset}-{facts['commit'].rstrip('+')}.jsonl"
    path = options.out or journal.path or machine.results_folder(options.device) / name
    writer = Writer(path, facts)
    if on_cpu:
        memory.limit_to_free()
    clock = "cuda" if options.device == "cuda" else options.clock
    say(f"{facts['device']}, {options.threads} threads, {facts['commit']} -> {path}")
    session = Session(
        options.device,
        writer,
        None if options.check_only else _rates(writer, journal, options, clock, tasks),
        clock,
        deadline=start + options.budget_s,
        row_budget_s=options.row_budget_s,
        modes=tuple(options.modes.split(",")),
        configurations=options.configurations,
        # A CPU is where the check is tried, beside whatever else it does.
        limit_s=10 * LIMIT_S if on_cpu else LIMIT_S,
        journal=journal,
        say=say,
    )
    calls = _wanted(options.ops, "overhead") and not options.check_only
    # On a GPU it is the least of all that is asked.
    if calls and on_cpu:
        overhead.measure(session)
    for task in tasks:
        session.run(task.case, task.precision, task.pass_name)
    if calls and not on_cpu:
        overhead.measure(session)
    session.say(f"{time.perf_counter() - start:.0f} s, {session.failures} failed -> {path}")
    if session.left_out:
        session.say(f"{session.left_out} cases left out for want of time")
    # What an earlier process of the check measured counts.
    nothing = journal.path is None and not session.measured
    if nothing:
        session.say("nothing was measured: give it a larger --budget-s, or fewer cases")
    incomplete = journal.path is not None and session.left_out > 0
    return 1 if session.failures or incomplete or nothing else 0


def _rates(
    writer: Writer, journal: Journal, options: argparse.Namespace, clock: str, tasks: list[Task]
) -> Rates:
    """The rates that bound the times of these tasks: measured now, or by an earlier process of this check."""
    # What a case needs is estimated from float32, in which it is checked. A check of a GPU measures once.
    wanted = {"fp32"} | {task.precision for task in tasks}
    precisions = [
        name
        for name, precision in PRECISIONS.items()
        if options.device in precision.devices and (journal.path is not None or name in wanted)
    ]
    if journal.path is not None and writer.path.exists():
        for row in reversed(results.read(writer.path, "machine")):
            if all(row.get(name) == writer.common.get(name) for name in ("device", "driver", "commit")):
                return Rates(row["copy"], row["products"])
    if journal.path is None:
        say(f"measuring what bounds the times: a copy, and products in {', '.join(precisions)}")
    budget_s = min(20.0, options.budget_s / 10)
    rates = machine.measure_rates(options.device, clock, precisions, budget_s, options.preset == "small")
    writer.write("machine", copy=rates.copy, products=rates.products, load=machine.load_average())
    return rates


if __name__ == "__main__":
    raise SystemExit(main())
