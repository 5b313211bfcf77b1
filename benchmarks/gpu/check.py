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
import importlib.metadata
import importlib.util
import os
import platform
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from benchmarks.gpu import library, sources
from benchmarks.gpu.library import STOP, tool
from benchmarks.gpu.stages import Outcome, Runner, Stage
from benchmarks.suite import journal, place, results
from benchmarks.suite.place import ROOT

PYTHON = sys.executable
BUDGET_S = 340.0
"""Of one call: two of them, with the machine's own start, fit into fifteen minutes."""
#: pytest without what pyproject.toml expects of plugins, and with the journal of the check.
PYTEST = (
    *(PYTHON, "-m", "pytest", "-v", "-o", "addopts=-ra --import-mode=importlib"),
    *("-p", "no:cacheprovider", "-p", "benchmarks.gpu.pytest_journal", "-m", "gpu"),
)
PACKAGES = (
    *("torch", "triton", "torchvision", "numpy", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis"),
    *("safetensors", "timm", "cmake", "ninja", "pybind11", "setuptools"),
)
"""What the check or its tests use, by the name it is installed under."""
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "git", "nvidia-smi")
#: Kernels whose counters are read: the slowest of each op at the network's shapes.
KERNELS = (
    *("pool_tokens_kernel", "pool_tokens_norm_kernel", "pool_tokens_input_kernel", "split_frames_kernel"),
    *("split_frames_backward_kernel", "split_index_kernel", "forward_kernel", "key_value_kernel"),
)
#: Ops that are measured beside their rivals, in this order, and the seconds that is expected to take.
RIVALS = {
    "pool_tokens": 26.0,
    "issm": 8.0,
    "lifting_attention": 7.0,
    "split_frames": 7.0,
    "split_index": 8.0,
    "pooled_attention": 18.0,
}
NETWORK = {"cuda": "mvit_xs 16x224x224", "cpu": "mvit_nano 16x64x64"}
"""Label of the network that is measured; the plan has others, of more frames and other sizes, behind it."""
NETWORK_TESTS = ("tests/gpu/test_network.py", "tests/gpu/test_batch.py")
"""All instances that the network runs, and batches whose offsets need 64 bits."""
AT_ONCE = 9
"""Processes that check native ops beside each other; the other cores compile Triton kernels."""
TESTERS = 6
"""Processes that test."""
WIDE = ("pool_tokens", "pooled_attention", "issm", "ladm", "model")
"""Cases that a second call measures in fp32 and tf32."""
AHEAD = {
    "network": ("compile the network", 270),
    "rivals": ("compile for rivals", 70),
    "tests": ("compile for tests", 690),
    "wide": ("compile for fp32 and tf32", 100),
}
"""Parts of what Triton compiles (``benchmarks.gpu.specialisations --only``): name of the stage, and how many
kernels that are not in the parts before it."""
FIND_S, COMPILE_S = 20.0, 0.85
"""Seconds until a part's kernels are known, and of a core for each to compile; on an AMD EPYC 7003."""
IMPORT_S = 10.0
"""Seconds from the start of a process until it measures, at most."""
TOLERANCE = 1.6
"""Times its estimate that a stage may take before it is stopped, and some seconds to start."""


@dataclass(frozen=True)
class Step:
    """Stages that run one after the other, or beside each other, and the seconds that should take."""

    name: str
    estimate_s: float
    stages: Sequence[Stage]
    at_once: int = 1
    #: Started here, and not waited for before a step needs it.
    background: Sequence[Stage] = ()
    #: Names of background stages, of this step or earlier ones, that must be over before this one begins.
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class Machine:
    """What the plan depends on; found out without importing torch."""

    device: str = "cuda"
    name: str = "unknown"
    capability: str = "9.0"
    driver: str = ""
    cores: int = 1
    missing: frozenset[str] = frozenset()
    #: Times its usual limit that a stage may take, where the budget is more than one call's.
    patience: float = 1.0

    @property
    def lacks_pytest(self) -> str:
        """Why no test can run; empty if tests can."""
        return "pytest is not installed" if "pytest" in self.missing else ""


def look(device: str) -> Machine:
    """This machine, and which of :data:`PACKAGES` and :data:`TOOLS` it lacks."""
    absent = {name for name in PACKAGES if _version(name) is None}
    # Distributions of a system do not always have metadata.
    absent -= {name for name in absent if importlib.util.find_spec(name.replace("-", "_")) is not None}
    missing = frozenset(absent | {name for name in TOOLS if tool(name) is None})
    name, capability, driver = "CPU", "9.0", ""
    if device == "cuda":
        found = _query("name,compute_cap,driver_version")
        name, capability, driver = found if len(found) == 3 else ("unknown GPU", "9.0", "")
    return Machine(device, name, capability, driver, os.cpu_count() or 1, missing)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _query(fields: str) -> list[str]:
    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    lines = place.output(*command, timeout_s=15).splitlines()
    return [field.strip() for field in lines[0].split(",")] if lines else []


def native_ops() -> list[str]:
    """Ops with CUDA kernels, without their backward halves; the most important first."""
    found = {name for name in library.expected_ops() if not name.endswith("_backward")}
    first = [op for op in RIVALS if op in found]
    return [*first, *sorted(found - set(first))]


def _limit(machine: Machine, estimate_s: float) -> float:
    return machine.patience * (TOLERANCE * estimate_s + 15.0)


def plan(machine: Machine) -> list[Step]:
    """The first call: what it does, in order."""
    return [
        _check_ops(machine),
        _native_times(machine),
        _network(machine, "training step", 35, "16", "training"),
        _network(machine, "inference of 16", 14, "16", "inference"),
        _network(machine, "inference of 1", 12, "1", "inference"),
        replace(
            _tests(machine, "native tests", 25, ("-k", "native", "tests/gpu", *_ignored(NETWORK_TESTS))),
            background=[_compile_ahead(machine, "rivals", machine.cores - TESTERS - 1)],
        ),
        _tests(machine, "network tests", 25, ("-k", "native", *NETWORK_TESTS), NETWORK_TESTS),
        _counters(machine),
        *(
            # Beside one process that measures. The first rivals, the heaviest op's, stay alone.
            replace(
                step, background=[_compile_ahead(machine, "tests", machine.cores - 3)] if place == 1 else ()
            )
            for place, step in enumerate(_rivals(machine, op, estimate) for op, estimate in RIVALS.items())
        ),
        _configurations(machine),
        replace(
            _tests(machine, "other tests", 40, ("-k", "not native", "tests/gpu")), needs=[AHEAD["tests"][0]]
        ),
    ]


def second_plan(machine: Machine) -> list[Step]:
    """What a second call adds: before what the first one did not reach, and after it."""
    first, rest = plan(machine)[0], plan(machine)[1:]
    # Times of the same plan in other precisions; what is there is passed over.
    which = ("--ops", ",".join(WIDE), "--batch", "16")
    options = (*which, "--precision", "fp32,tf32", "--modes", "graph")
    more = _measure(machine, "fp32 and tf32", 60, (*options, "--contenders", "native,triton,rewrite,ifdd"))
    profile = Stage(
        "profile",
        (PYTHON, "-m", "benchmarks.suite.profile", "--passes", "training"),
        _limit(machine, 20),
        skip="needs a GPU" if machine.device == "cpu" else "",
        sources=sources.digest(),
    )
    overhead = _measure(machine, "overhead", 15, ("--ops", "overhead"))
    # Beside what compiles the network, which may still run.
    jobs = machine.cores - AT_ONCE - 1
    return [
        first,
        replace(_sanitizer(machine, "memcheck", 35), background=[_compile_ahead(machine, "wide", jobs)]),
        *rest,
        replace(more, needs=[AHEAD["wide"][0]]),
        _sanitizer(machine, "racecheck", 45),
        Step("profile", 20, [profile], needs=[AHEAD["network"][0]]),
        replace(overhead, needs=[AHEAD["tests"][0]]),
    ]


def _device(machine: Machine) -> tuple[str, ...]:
    small = ("--preset", "small", "--clock", "cpu") if machine.device == "cpu" else ()
    return ("--device", machine.device, *small)


def _command(machine: Machine, *options: str) -> tuple[str, ...]:
    return (PYTHON, "-m", "benchmarks", *_device(machine), *options)


def _measure(
    machine: Machine, name: str, estimate: float, options: Sequence[str], op: str | None = None
) -> Step:
    limit = _limit(machine, estimate)
    # The process stops before it is stopped: then a case is left out, and not cut in two.
    own = ("--row-budget-s", "0.15", "--budget-s", f"{limit - IMPORT_S:.0f}")
    stage = Stage(name, _command(machine, *options, *own), limit, items=True, sources=sources.digest(op))
    return Step(name, estimate, [stage])


def _check_ops(machine: Machine) -> Step:
    """Every native op once at every shape of the network, one clip: values and gradients against float64."""
    estimate, limit = 30.0, machine.patience * 75.0
    stages = [
        Stage(
            f"check {op}",
            _command(
                machine,
                *("--ops", op, "--batch", "1", "--contenders", "native", "--passes", "training,inference"),
                *("--precision", "bf16,fp32", "--check-only"),
            ),
            limit,
            items=True,
            sources=sources.digest(op),
        )
        for op in native_ops()
    ]
    compile_ahead = _compile_ahead(machine, "network", machine.cores - AT_ONCE)
    return Step(
        "native ops", estimate, stages, at_once=min(AT_ONCE, machine.cores), background=[compile_ahead]
    )


def _compile_ahead(machine: Machine, part: str, jobs: int) -> Stage:
    """A part of the Triton kernels, see :data:`AHEAD`, on cores that nobody else needs.

    What it does not compile is compiled where it is first called: slower, and no less right.
    """
    name, kernels = AHEAD[part]
    jobs = max(1, jobs)
    architecture = machine.capability.replace(".", "")
    options = ("--jobs", str(jobs), "--arch", architecture, "--only", part)
    return Stage(
        name,
        (PYTHON, "-m", "benchmarks.gpu.specialisations", *options),
        estimate_s=FIND_S + COMPILE_S * kernels / jobs,
        limit_s=machine.patience * 120,
        # It forks, which a process that has used the device must not; and needs none.
        environment={"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        skip="needs a GPU" if machine.device == "cpu" else _absent(machine, "triton"),
        sources=sources.digest(),
    )


def _pytest(machine: Machine) -> tuple[str, ...]:
    timeout = () if "pytest-timeout" in machine.missing else ("--timeout=25", "--timeout-method=thread")
    # A few workers: they share the GPU, and each takes seconds to import what it tests.
    workers = () if "pytest-xdist" in machine.missing else ("-n", str(max(1, min(TESTERS, machine.cores))))
    # Each test that loses its worker costs one; xdist gives up after four times as many as there are workers.
    workers += ("--max-worker-restart=1000",) if workers else ()
    return (*PYTEST, *timeout, *workers)


def _ignored(files: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"--ignore={file}" for file in files)


def _tests(
    machine: Machine, name: str, estimate: float, options: Sequence[str], needs: Sequence[str] = ()
) -> Step:
    absent = [file for file in needs if not (ROOT / file).is_file()]
    stage = Stage(
        name,
        (*_pytest(machine), *options),
        _limit(machine, estimate),
        # Inductor would start a process a core in each worker.
        {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
        skip=("needs a GPU" if machine.device == "cpu" else "")
        or (f"there is no {' or '.join(absent)}" if absent else machine.lacks_pytest),
        accepted={5: "no test was left to run"},
        items=True,
        sources=sources.digest(),
    )
    return Step(name, estimate, [stage])


def _native_times(machine: Machine) -> Step:
    """Of all native ops, B = 16, bf16, without anybody beside them."""
    options = ("--ops", ",".join(native_ops()), "--batch", "16", "--precision", "bf16")
    return _measure(
        machine, "native times", 25, (*options, "--contenders", "native", "--alone", "--modes", "graph")
    )


def _network(machine: Machine, name: str, estimate: float, batch: str, passes: str) -> Step:
    options = (
        *("--ops", "model", "--labels", NETWORK[machine.device]),
        *("--batch", batch, "--precision", "bf16", "--passes", passes),
    )
    step = _measure(machine, name, estimate, (*options, "--contenders", "ifdd"))
    return replace(step, needs=[AHEAD["network"][0]])


def _rivals(machine: Machine, op: str, estimate: float) -> Step:
    """An op beside its rivals, without those that have to be compiled."""
    labels = ("--labels", "8 frames") if op == "issm" else ()
    options = ("--ops", op, *labels, "--batch", "16", "--precision", "bf16", "--modes", "graph")
    names = "native,triton,reference,rewrite,sdpa"
    step = _measure(machine, f"rivals of {op}", estimate, (*options, "--contenders", names), op)
    return replace(step, needs=[AHEAD["rivals"][0]])


def _configurations(machine: Machine) -> Step:
    """Every configuration of each Triton kernel of the two heaviest ops, one after the other."""
    options = ("--ops", "pooled_attention,pool_tokens", "--labels", "block 0,block 1,block 4-7")
    same = ("--batch", "16", "--precision", "bf16", "--passes", "training", "--modes", "graph")
    skip = "Triton does not run on a CPU" if machine.device == "cpu" else _absent(machine, "triton")
    step = _measure(
        machine, "configurations", 24, (*options, *same, "--contenders", "triton", "--configurations")
    )
    stages = [replace(stage, skip=skip) for stage in step.stages]
    return replace(step, stages=stages, needs=[AHEAD["rivals"][0]])


def _counters(machine: Machine) -> Step:
    """The profiler's view of the first launch of each kernel; its clocks are left as they are."""
    ops = "pool_tokens,split_frames,split_index,lifting_attention"
    command = (
        *(tool("ncu") or "ncu", "--clock-control", "none", "--target-processes", "all"),
        *("--kernel-id", f"::regex:^({'|'.join(KERNELS)})$:1"),
        *("--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis", "--section", "Occupancy"),
        *("--section", "LaunchStats"),
        *_command(
            machine, "--ops", ops, "--labels", "block 0,network", "--batch", "16", "--precision", "bf16"
        ),
        *("--passes", "training", "--contenders", "native", "--alone", "--check-only"),
    )
    skip = "needs a GPU" if machine.device == "cpu" else _absent(machine, "ncu")
    # ncu prints its tables when all is over: of a stage that was cut there are none, though its cases ended.
    environment = {journal.SOURCES: f"{sources.digest()} at {time.time_ns()}"}
    stage = Stage(
        "counters", command, machine.patience * 70, environment, skip=skip, sources=sources.digest()
    )
    return Step("counters", 18, [stage])


def _sanitizer(machine: Machine, name: str, estimate: float) -> Step:
    """Native kernels on small shapes, without PyTorch's cache: beyond a tensor is beyond its memory."""
    program = tool("compute-sanitizer") or "compute-sanitizer"
    command = (program, "--tool", name, "--error-exitcode", "9", PYTHON, "-m", "benchmarks.gpu.small_shapes")
    skip = "needs a GPU" if machine.device == "cpu" else _absent(machine, "compute-sanitizer")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    stage = Stage(name, command, _limit(machine, estimate), environment, skip=skip, sources=sources.digest())
    return Step(name, estimate, [stage])


def _absent(machine: Machine, name: str) -> str:
    return f"{name} is not installed" if name in machine.missing else ""


START_S, BUILD_S, BUILD_LIMIT_S = 12.0, 45.0, 150.0
"""Seconds expected to look at the library, and to build one where none was carried."""


def table(steps: Sequence[Step], builds: bool) -> str:
    """The steps with their estimates, what has to be waited for, and the sum."""
    rows = [("library", START_S, "versions, the device, all CUDA ops")]
    if builds:
        rows.insert(0, ("build", BUILD_S, "no library of these sources was carried"))
    ends: dict[str, float] = {}
    for step in steps:
        now = sum(seconds for _, seconds, _ in rows)
        background = [stage for stage in step.background if not stage.skip]
        ends |= {stage.name: now + min(stage.estimate_s, stage.limit_s) for stage in background}
        late = {name: ends[name] - now for name in step.needs if ends.get(name, 0.0) > now}
        if late:
            rows.append(("(waiting)", max(late.values()), f"until it is over: {', '.join(late)}"))
        skips = [stage.skip for stage in step.stages]
        what = " ".join(step.stages[0].command[1:]) if step.stages else "only what runs beside it"
        if skips and all(skips):
            what = f"NOT HERE, {skips[0]}: {what}"
        beside = f" [{len(step.stages)} processes, {step.at_once} at once]" if len(step.stages) > 1 else ""
        behind = "".join(f"; beside it, {one.estimate_s:.0f} s: {one.name}" for one in step.background)
        rows.append((step.name, step.estimate_s, f"{what}{beside}{behind}"))
    lines = [f"{name:28s} {seconds:5.0f} s  {what}" for name, seconds, what in rows]
    return "\n".join([*lines, f"{'in all':28s} {sum(seconds for _, seconds, _ in rows):5.0f} s"])


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
    command = (PYTHON, "-m", "benchmarks.gpu.library", "--device", machine.device)
    # The first import of torch on a machine reads gigabytes.
    return Stage("library", command, 150, sources=sources.digest())


def first_line(machine: Machine) -> dict[str, object]:
    """Where this is: versions by package, the device, and what is missing by name."""
    versions = {name: _version(name) for name in PACKAGES if name not in machine.missing}
    return {
        "device": machine.name,
        "capability": machine.capability if machine.device == "cuda" else None,
        "driver": machine.driver,
        "cores": machine.cores,
        "python": platform.python_version(),
        "versions": versions,
        "missing": sorted(machine.missing),
        "commit": place.commit(),
        "sources": sources.digest(),
        "library": library.find(cuda=machine.device == "cuda").problem or "carried, of these sources",
    }


def done(log: Path, steps: Sequence[Step]) -> list[Step]:
    """The steps without the stages that the log has as done, with the sources as they are now."""
    rows = results.read(log, "stage") if log.exists() else []
    ok = {(row["stage"], row["sources"]) for row in rows if row["status"] == "ok"}

    def left(stages: Sequence[Stage]) -> list[Stage]:
        return [stage for stage in stages if (stage.name, stage.sources) not in ok]

    return useful([replace(step, stages=left(step.stages)) for step in steps])


def only(steps: Sequence[Step], names: Collection[str]) -> list[Step]:
    """The steps of these names, and what has to run beside others for them."""
    return useful([step if step.name in names else replace(step, stages=[]) for step in steps])


def useful(steps: Sequence[Step]) -> list[Step]:
    """The steps without those that have nothing to do, and without background stages that none needs.

    A background stage stays where its step is done: a machine keeps nothing from one call to the next.
    """
    kept: list[Step] = []
    needed: set[str] = set()
    for step in reversed(steps):
        if not all(stage.skip for stage in step.stages):
            needed |= set(step.needs)
        background = tuple(stage for stage in step.background if stage.name in needed)
        if step.stages:
            kept.append(replace(step, background=background))
        elif background:
            kept.append(replace(step, background=background, estimate_s=0.0, needs=()))
    return kept[::-1]


def walk(runner: Runner, steps: Sequence[Step]) -> list[Outcome]:
    """Runs the steps in order."""
    outcomes: list[Outcome] = []
    for step in steps:
        for stage in step.background:
            runner.start(stage)
        outcomes += runner.join(step.needs)
        if len(step.stages) > 1:
            outcomes += runner.together(step.stages, step.at_once)
        else:
            outcomes += [runner.run(stage) for stage in step.stages]
    return outcomes + runner.join()


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
    steps = plan(machine) if options.resume is None else second_plan(machine)
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
