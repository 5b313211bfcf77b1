"""``python -m benchmarks``: measures in order of importance until the budget ends."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import machine, memory, overhead, plan
from benchmarks.plan import Task
from benchmarks.precision import PRECISIONS
from benchmarks.results import Writer
from benchmarks.runner import PASSES, Session


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--preset", choices=("table", "short"), default="table", help="short: make bench")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--ops", help="only these cases, e.g. issm,pool_tokens,model")
    parser.add_argument("--labels", help="only these labels, e.g. 'block 0,block 1'")
    parser.add_argument("--contenders", help="only these beside the original, e.g. native,rewrite")
    parser.add_argument("--batch", help="only these batch sizes, e.g. 1,16")
    parser.add_argument("--precision", help=f"only these of {','.join(PRECISIONS)}")
    parser.add_argument("--passes", help=f"only these of {','.join(PASSES)}")
    parser.add_argument("--budget-s", type=float, default=900.0, help="seconds for the whole run")
    parser.add_argument("--row-budget-s", type=float, default=3.0, help="seconds of rounds per contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a shared machine")
    parser.add_argument("--out", type=Path, help="result file, appended to")
    return parser.parse_args(arguments)


def selected(options: argparse.Namespace) -> Iterator[Task]:
    """The tasks of the preset that the options leave."""
    tasks = plan.gpu() if options.device == "cuda" else plan.cpu(options.preset == "short")
    for task in tasks:
        case = task.case
        if not (
            _wanted(options.ops, case.name)
            and _wanted(options.labels, case.label)
            and _wanted(options.batch, str(case.batch))
            and _wanted(options.precision, task.precision)
            and _wanted(options.passes, task.pass_name)
        ):
            continue
        if options.contenders:
            case = case.only((case.anchor, *options.contenders.split(",")))
            if {contender.name for contender in case.contenders} <= {case.anchor}:
                continue
        yield Task(case, task.precision, task.pass_name)


def _wanted(choice: str | None, value: str) -> bool:
    return choice is None or value in choice.split(",")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if a result was wrong or a contender broke."""
    start = time.perf_counter()
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    facts = machine.describe(options.device, options.threads)
    on_cpu = options.device == "cpu"
    facts["freed_memory_kept"] = on_cpu and memory.keep_freed()
    name = f"{options.preset}-{facts['commit'].rstrip('+')}.jsonl"
    path = options.out or machine.results_folder(options.device) / name
    writer = Writer(path, facts)
    if on_cpu:
        memory.limit_to_free()
    clock = "cuda" if options.device == "cuda" else options.clock
    rates = machine.measure_rates(options.device, clock)
    writer.write("machine", copy=rates.copy, products=rates.products, load=machine.load_average())
    session = Session(
        options.device,
        writer,
        rates,
        clock,
        deadline=start + options.budget_s,
        row_budget_s=options.row_budget_s,
        say=lambda line: print(line, flush=True),
    )
    session.say(f"{facts['device']}, {options.threads} threads, {facts['commit']} -> {path}")
    if options.ops is None:
        overhead.measure(session)
    for task in selected(options):
        session.run(task.case, task.precision, task.pass_name)
    session.say(f"{time.perf_counter() - start:.0f} s, {session.failures} failed -> {path}")
    return 1 if session.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
