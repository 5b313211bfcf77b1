"""Tasks of two calls of the check on a GPU, the most important first, with their estimated seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.gpu import library, sources
from benchmarks.gpu.host import Machine
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.steps import Step
from benchmarks.gpu.toolkit import find_tool
from benchmarks.suite import journal
from benchmarks.suite.place import ROOT

PYTHON = sys.executable
#: pytest without what pyproject.toml expects of plugins, and with the journal of the check.
PYTEST = (
    *(PYTHON, "-m", "pytest", "-v", "-o", "addopts=-ra --import-mode=importlib"),
    *("-p", "no:cacheprovider", "-p", "benchmarks.gpu.pytest_journal", "-m", "gpu"),
)
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
NETWORK_TESTS = ("tests/gpu/test_network.py", "tests/gpu/test_batch.py", "tests/gpu/test_captured.py")
"""All instances that the network runs, batches whose offsets need 64 bits, and the network as CUDA graphs."""
AT_ONCE = 9
"""Processes that check native ops beside each other; the other cores compile Triton kernels."""
TESTERS = 6
"""Processes that test."""
WIDE = ("pool_tokens", "pooled_attention", "issm", "ladm", "model")
"""Cases that a second call measures in fp32 and tf32."""
AHEAD = {
    "network": ("compile the network", 270),
    "rivals": ("compile for rivals", 83),
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
#: No part of the network: python -m benchmarks.clips measures it with the reading of clips.
UNMEASURED = {"augment_clips"}


def native_ops(device: str) -> list[str]:
    """Ops with native kernels that benchmarks have a case of, without their backward halves; the most
    important first.
    """
    found = {name for name in library.expected_ops() if not name.endswith("_backward")} - UNMEASURED
    if device == "cpu":
        found = {name for name in found if (ROOT / "csrc" / "cpu" / f"{name}.cpp").is_file()}
    first = [op for op in RIVALS if op in found]
    return [*first, *sorted(found - set(first))]


def _limit(machine: Machine, estimate_s: float) -> float:
    return machine.patience * (TOLERANCE * estimate_s + 15.0)


def first_call(machine: Machine) -> list[Step]:
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
        _tests(machine, "network tests", 30, ("-k", "native", *NETWORK_TESTS), NETWORK_TESTS),
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


def second_call(machine: Machine) -> list[Step]:
    """The tasks of a second call: those before the rest of the first one, and those after it."""
    first, rest = first_call(machine)[0], first_call(machine)[1:]
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
        for op in native_ops(machine.device)
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
    options = ("--ops", ",".join(native_ops(machine.device)), "--batch", "16", "--precision", "bf16")
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
        *(find_tool("ncu") or "ncu", "--clock-control", "none", "--target-processes", "all"),
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
    program = find_tool("compute-sanitizer") or "compute-sanitizer"
    command = (program, "--tool", name, "--error-exitcode", "9", PYTHON, "-m", "benchmarks.gpu.small_shapes")
    skip = "needs a GPU" if machine.device == "cpu" else _absent(machine, "compute-sanitizer")
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    stage = Stage(name, command, _limit(machine, estimate), environment, skip=skip, sources=sources.digest())
    return Step(name, estimate, [stage])


def _absent(machine: Machine, name: str) -> str:
    return f"{name} is not installed" if name in machine.missing else ""
