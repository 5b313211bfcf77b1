"""Compiles ahead what Triton would otherwise compile at each first launch, one after the other.

    python -m benchmarks.specialisations --jobs 16             into Triton's cache, for the GPU that is there
    python -m benchmarks.specialisations --arch 90 --check     without one, and look at what was compiled
    python -m benchmarks.specialisations --arch 90 --list      only say what there is

Found by running the host code of the Triton kernels on tensors without memory: for every sample of the
registry and every call of the network, in all dtypes and the default configuration, as the tests run them;
for the calls that tests run in every configuration; for every case of the benchmarks' GPU plan, which has a
training step of the network, in every configuration that tuning tries. Triton compiles a kernel anew for
integers that are 1 or a multiple of 16 and for pointers that are: those are told from the arguments as a
launch tells them.

What was compiled through the stand-in driver for an architecture is what a launch on such a GPU looks for.
Not found here: what TorchInductor compiles of these kernels, for it compiles by its own rules and in
processes of its own; and batch sizes that stochastic depth leaves over. Those are compiled at their first
launch.

A process each compiles; one that dies or takes too long names what it was at and is replaced.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver
from triton.runtime.jit import MockTensor, compute_cache_key

from benchmarks import gpu_check, network_calls, ours, plan
from benchmarks.cases import Case
from benchmarks.contender import DeviceMaker, prepare
from benchmarks.network_calls import Instance
from benchmarks.precision import PRECISIONS
from benchmarks.triton_resources import Compilation, StandIn, launches_of
from benchmarks.triton_resources import spills as spills_of
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import NAMESPACE
from ifdd_kernels.registry import REGISTRY, Maker
from ifdd_kernels.triton._runtime import Kernel, Launch, captured_launches
from ifdd_kernels.triton._tuning import Config

#: Seconds one compilation may take before it counts as hung.
LIMIT_S = 120.0
#: Of the tests that run every configuration. float16 has those of bfloat16.
CONFIGURED_BATCH, CONFIGURED_DTYPES = 2, (torch.bfloat16, torch.float32)


class Pointer(MockTensor):  # type: ignore[misc]
    """What the compiler sees of a tensor: its dtype, and the place of its first element among 16 bytes.

    Memory that PyTorch allocates starts at a multiple of 512 bytes, so the offset in it decides. An empty
    tensor has no place: its address is 0.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        self._place = tensor.storage_offset() * tensor.element_size() % 16 if tensor.numel() else 0

    def data_ptr(self) -> int:
        """Stands for the address."""
        return self._place


@dataclass(frozen=True)
class Specialisation:
    """A kernel in one configuration as one launch asks for it. Processes hand it to each other."""

    #: For people: kernel, op, which call of it, dtypes, configuration.
    name: str
    architecture: int
    #: Where the kernel is.
    module: str
    attribute: str
    #: The arguments of the launch with pointers in place of tensors, tiles and options of the compiler.
    values: dict[str, Any]
    #: Triton's own: launches of the same key share what was compiled.
    key: str

    @property
    def function(self) -> Any:
        """What Triton compiles."""
        return getattr(importlib.import_module(self.module), self.attribute).function

    def compile(self, check: bool = False) -> dict[str, Any]:
        """Compiles it into Triton's cache; with ``check`` says what came of it."""
        driver.set_active(StandIn(self.architecture))
        compiled = self.function.warmup(**self.values, grid=(1,))
        # Up to Triton 3.7 a launch also needs a C module for its types. Later ones share one.
        if hasattr(nvidia, "make_launcher") and has_libcuda():
            nvidia.CudaLauncher(compiled.src, compiled.metadata)
        return spills_of(compiled.asm["cubin"]) if check else {}


def specialisation(op: str, label: str, architecture: int, launch: Launch, config: Config) -> Specialisation:
    """What a launch asks for in one of its configurations."""
    kernel, arguments = launch.kernel, launch.arguments
    module, attribute = _place(kernel)
    given = {n: Pointer(v) if isinstance(v, Tensor) else v for n, v in arguments.items()}
    values = {**given, **config.tiles, **config.options}
    name = Compilation(op, label, architecture, kernel, arguments, config).name
    key = launch_key(kernel.function, values)
    return Specialisation(name, architecture, module, attribute, values, key)


def _place(kernel: Kernel) -> tuple[str, str]:
    """Module and name of a kernel, by which other processes find it."""
    for name, module in sys.modules.items():
        if name.startswith("ifdd_kernels.triton."):
            for attribute, value in vars(module).items():
                if value is kernel:
                    return name, attribute
    raise RuntimeError(f"{kernel.name} is in no module of ifdd_kernels.triton")


def launch_key(function: Any, values: dict[str, Any]) -> str:
    """The key under which Triton keeps what it compiled for a launch with these arguments."""
    device = driver.active.get_current_device()
    *_, binder = function.device_caches[device]
    # As JITFunction.run completes them.
    _, specialization, options = binder(**values, debug=False)
    key: str = compute_cache_key({}, specialization, options)
    return f"{function.cache_key} {key}"


@functools.cache
def has_libcuda() -> bool:
    """Whether a launcher can be linked."""
    try:
        nvidia.library_dirs()
    except (AssertionError, OSError):
        return False
    return shutil.which(os.environ.get("CC", "gcc")) is not None


@dataclass(frozen=True)
class Found:
    """Launches of one call, and whether all configurations of them are tried or the default alone."""

    label: str
    op: str
    launches: list[Launch]
    every: bool


class _Calls(TorchDispatchMode):
    """Notes what Triton would launch for every call of an op that has Triton kernels, whatever runs it."""

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.launches: list[tuple[str, list[Launch]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == NAMESPACE:
            name = name.removesuffix("_triton").removesuffix("_reference")
            op = name.removesuffix("_backward")
            if "triton" in OPERATORS[op].backends:
                module = importlib.import_module(f"ifdd_kernels.triton.{op}")
                with captured_launches(self.architecture) as launches:
                    (module.forward if op == name else module.backward)(*args)
                self.launches.append((op, launches))
        return results


#: Something that launches kernels: (architecture) -> the launches of its calls.
Question = Callable[[int], Iterator[Found]]


def of_tests() -> list[Question]:
    """Samples of the registry and calls of the network, forward and backward."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    written = [op for op, operator in OPERATORS.items() if "triton" in operator.backends]
    return [
        *(functools.partial(_of_samples, op, dtype) for op in written for dtype in dtypes),
        *(functools.partial(_of_calls, op, *tested) for op in written for tested in network_calls.TESTED),
        *(functools.partial(_of_configurations, op, dtype) for op in written for dtype in CONFIGURED_DTYPES),
    ]


def _of_samples(op: str, dtype: torch.dtype, architecture: int) -> Iterator[Found]:
    for sample in REGISTRY[op].samples(Maker(dtype, "meta")):
        label = f"sample {sample.label}, {str(dtype)[6:]}"
        yield Found(label, op, launches_of(OPERATORS[op], sample.args, architecture), every=False)


def _of_calls(op: str, dtype: torch.dtype, batch: int, architecture: int) -> Iterator[Found]:
    for call in network_calls.instances(plan.NETWORK):
        if call.op == op:
            label = f"{call.label}, B = {batch}, {str(dtype)[6:]}"
            arguments = call.empty(batch, dtype, "meta")
            yield Found(label, op, launches_of(OPERATORS[op], arguments, architecture), every=False)


def _of_configurations(op: str, dtype: torch.dtype, architecture: int) -> Iterator[Found]:
    for call in configured_calls(op, architecture):
        label = f"{call.label}, {str(dtype)[6:]}"
        arguments = call.empty(CONFIGURED_BATCH, dtype, "meta")
        yield Found(label, op, launches_of(OPERATORS[op], arguments, architecture), every=True)


def configured_calls(op: str, architecture: int) -> list[Instance]:
    """Calls that tests on a GPU run in every configuration.

    The one of the network whose kernels have the most, the smallest of such, and a ragged one.
    """

    def configurations(call: Instance) -> int:
        most: dict[str, int] = {}
        arguments = call.empty(CONFIGURED_BATCH, torch.bfloat16, "meta")
        for launch in launches_of(OPERATORS[op], arguments, architecture):
            most[launch.kernel.name] = max(most.get(launch.kernel.name, 0), len(launch.configs))
        return sum(count for count in most.values() if count > 1)

    calls = [call for call in network_calls.instances(plan.NETWORK) if call.op == op]
    largest = min(calls, key=lambda call: (-configurations(call), call.largest))
    return [largest, *(call for call in network_calls.ragged() if call.op == op)]


def of_plan() -> list[Question]:
    """Cases of the GPU plan, in its order: single ops, and modules and networks by the ops they call."""
    questions: dict[tuple[Any, ...], Question] = {}
    # What could run on the device does not matter: the kernels' host code is called as it is.
    with mock.patch.object(ours, "backends", return_value=[]):
        for task in plan.gpu():
            case, training = task.case, task.pass_name == "training"
            what = (case.name, case.label, case.batch, case.frames, case.image_size, task.precision)
            # A training step launches what inference does, on more or the same.
            if not _traced_elsewhere(case) and (*what, True) not in questions:
                questions.setdefault((*what, training), functools.partial(_of_task, task))
    return list(questions.values())


def _of_task(task: plan.Task, architecture: int) -> Iterator[Found]:
    case, training = task.case, task.pass_name == "training"
    label = f"{case.name} {case.label}, B = {case.batch}, {task.precision}, {task.pass_name}"
    with PRECISIONS[task.precision].context("cpu"):
        for op, launches in _of_case(case, task.precision, training, architecture):
            yield Found(label, op, launches, every=True)


def _of_plan(wanted: Callable[[plan.Task], bool]) -> list[Question]:
    return [question for question in of_plan() if wanted(question.args[0])]  # type: ignore[attr-defined]


def of_network() -> list[Question]:
    """The network alone, in the precision it is trained in, of the plan."""

    def wanted(task: plan.Task) -> bool:
        case, standard = task.case, plan.NETWORK
        sizes = (case.frames, case.image_size) == (standard.clip_frames, standard.image_size)
        return case.name == "model" and task.precision == "bf16" and sizes

    return _of_plan(wanted)


def of_rivals() -> list[Question]:
    """What the first call of gpu-check measures."""
    return _of_plan(lambda task: task.precision == "bf16" and task.case.batch == 16)


def of_wide() -> list[Question]:
    """What its second call adds."""
    return _of_plan(
        lambda task: (
            task.precision in ("fp32", "tf32") and task.case.batch == 16 and task.case.name in gpu_check.WIDE
        )
    )


#: What there is to compile for, by name.
PARTS: dict[str, Callable[[], list[Question]]] = {
    "network": of_network,
    "rivals": of_rivals,
    "tests": of_tests,
    "wide": of_wide,
    "benchmarks": of_plan,
}


def _traced_elsewhere(case: Case) -> bool:
    """Networks of other people, and ops without Triton kernels."""
    operator = OPERATORS.get(case.name)
    return case.name == "backbone_s" or (
        operator is not None and "triton" not in operator.backends and not operator.parts
    )


def _of_case(
    case: Case, precision: str, training: bool, architecture: int
) -> Iterator[tuple[str, list[Launch]]]:
    dtype = case.dtype or PRECISIONS[precision].activations
    operator = OPERATORS.get(case.name)
    if operator is not None and "triton" in operator.backends:
        inputs = case.make(DeviceMaker(dtype, "meta"))
        arguments = operator.signature.order(inputs.named())
        yield case.name, launches_of(operator, arguments, architecture)
        return
    calls = _Calls(architecture)
    mine = ours.issm("auto") if case.name == "issm" else next(one for one in case.contenders if one.ours)
    if case.name == "issm" or case.name in REGISTRY:
        with FakeTensorMode(), calls:
            prepare(mine, case.make(DeviceMaker(dtype, "cpu")), training)()
    else:
        # Modules are built of real parameters, which their initialisation reads; clips have no memory.
        inputs = case.make(DeviceMaker(dtype, "meta"))
        sizes = {name: x.shape for name, x in inputs.activations.items()}
        flat = {name: torch.empty((), dtype=dtype).expand(size) for name, size in sizes.items()}
        bound = mine.bind(replace(inputs, activations=flat))
        with FakeTensorMode(allow_non_fake_inputs=True), calls:
            fake = {name: torch.empty(size, dtype=dtype) for name, size in sizes.items()}
            prepare(mine, replace(inputs, activations=fake), training, bound)()
    yield from calls.launches


def answer(question: Question, architecture: int) -> list[Specialisation]:
    """What the launches of a question ask for, each once, in their order."""
    driver.set_active(StandIn(architecture))
    kept: dict[str, Specialisation] = {}
    for call in question(architecture):
        for launch in call.launches:
            for config in launch.configs if call.every else launch.configs[:1]:
                one = specialisation(call.op, call.label, architecture, launch, config)
                kept.setdefault(one.key, one)
    return list(kept.values())


@dataclass
class Result:
    """What came of one: what its process returned, or what went wrong."""

    name: str
    seconds: float
    value: Any
    problem: str = ""


class _Worker:
    """A process that does what it is told to, one at a time."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        context = multiprocessing.get_context("fork")  # has imported what this process has
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.at: int | None = None
        self.since = 0.0

    def give(self, number: int) -> None:
        """Starts a piece of work."""
        self.at, self.since = number, time.perf_counter()
        self.pipe.send(number)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, work: Callable[[int], Any]) -> None:
    while True:
        try:
            number = pipe.recv()
        except EOFError:  # the parent has gone
            return
        try:
            pipe.send((work(number), ""))
        except Exception:
            pipe.send((None, traceback.format_exc(limit=-3)))


def in_processes(
    names: Sequence[str],
    work: Callable[[int], Any],
    jobs: int,
    limit_s: float = LIMIT_S,
    say: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Calls ``work(i)`` for every name in ``jobs`` processes; results in the order of the names.

    A process that dies or is longer at one than ``limit_s`` is replaced, and its result names the problem.
    """
    waiting = list(range(len(names)))[::-1]
    workers = [_Worker(work) for _ in range(min(jobs, len(names)))]
    results: dict[int, Result] = {}

    def note(worker: _Worker, value: Any, problem: str) -> None:
        assert worker.at is not None
        result = Result(names[worker.at], time.perf_counter() - worker.since, value, problem)
        results[worker.at] = result
        worker.at = None
        say(result)

    try:
        while waiting or any(worker.at is not None for worker in workers):
            for worker in workers:
                if worker.at is None and waiting:
                    worker.give(waiting.pop())
            busy = [worker for worker in workers if worker.at is not None]
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for place, worker in enumerate(workers):
                if worker.at is None:
                    continue
                if worker.pipe in ready:
                    try:
                        note(worker, *worker.pipe.recv())
                        continue
                    except EOFError:
                        worker.process.join()
                        problem = f"its process died, exit code {worker.process.exitcode}"
                elif time.perf_counter() - worker.since > limit_s:
                    problem = f"not done within {limit_s:.0f} s"
                else:
                    continue
                note(worker, None, problem)
                worker.end()
                workers[place] = _Worker(work)
    finally:
        for worker in workers:
            worker.end()
    return [results[number] for number in range(len(names))]


def spills(row: dict[str, Any] | None) -> int:
    """Local stores and loads of a kernel."""
    return 0 if row is None else int(row.get("spill_stores", 0)) + int(row.get("spill_loads", 0))


def find(
    questions: Sequence[Question], architecture: int, jobs: int
) -> tuple[list[Specialisation], dict[str, str]]:
    """All specialisations, each once, and the questions that could not be answered with the reason."""
    names = [_shown(question) for question in questions]
    answers = in_processes(names, lambda i: answer(questions[i], architecture), jobs)
    kept: dict[str, Specialisation] = {}
    for result in answers:
        for one in result.value or []:
            kept.setdefault(one.key, one)
    return list(kept.values()), {result.name: result.problem for result in answers if result.problem}


def _shown(question: Any) -> str:
    shown = [f"{a.case.name} {a.case.label}" if isinstance(a, plan.Task) else str(a) for a in question.args]
    return f"launches of {', '.join(shown)}"


def device_architecture() -> int:
    """Of the GPU that is there, 90 for sm_90.

    Raises:
        RuntimeError: there is none.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("there is no GPU: say --arch 90 to compile for sm_90")
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where something does not compile, or spills (``--check``)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--arch", type=int, help="90 for sm_90; the GPU's by default")
    parser.add_argument("--only", choices=tuple(PARTS), help="a part of it")
    parser.add_argument("--kernels", default="", help="only kernels whose name has this in it")
    parser.add_argument("--check", action="store_true", help="look for spills in what was compiled")
    parser.add_argument("--list", action="store_true", help="compile nothing")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="for one compilation")
    parser.add_argument("--out", type=Path, help="a JSON file for counts, spills and failures")
    options = parser.parse_args(arguments)
    try:
        architecture = device_architecture() if options.arch is None else options.arch
    except RuntimeError as error:
        parser.error(str(error))

    begin = time.perf_counter()
    parts = [options.only] if options.only else ["tests", "benchmarks"]
    questions = [question for part in parts for question in PARTS[part]()]
    everything, unanswered = find(questions, architecture, options.jobs)
    everything = [one for one in everything if options.kernels in one.name]
    finding = time.perf_counter() - begin
    print(
        f"{len(everything)} specialisations for sm_{architecture} in {len(questions)} questions,"
        f" found in {finding:.0f} s",
        flush=True,
    )
    for name, problem in unanswered.items():
        print(f"!!! {name}: {problem}", file=sys.stderr, flush=True)
    if options.list:
        print("\n".join(one.name for one in everything))
        return 1 if unanswered else 0

    def say(result: Result) -> None:
        if result.problem or spills(result.value):
            why = result.problem or f"spills ({result.value})"
            print(f"!!! {result.name}: {why}", file=sys.stderr, flush=True)

    names = [one.name for one in everything]
    results = in_processes(
        names, lambda i: everything[i].compile(options.check), options.jobs, options.limit_s, say
    )
    failed = {result.name: result.problem for result in results if result.problem} | unanswered
    spilled = {result.name: spills(result.value) for result in results if spills(result.value)}
    done = sum(not result.problem for result in results)
    seconds = time.perf_counter() - begin
    print(
        f"{done} of {len(names)} compiled in {seconds:.0f} s, {options.jobs} at a time,"
        f" {sum(r.seconds for r in results) / max(len(results), 1):.2f} s each"
        + (f", {len(spilled)} spill" if options.check else "")
    )
    if options.out:
        report = {
            "specialisations": len(names),
            "compiled": done,
            "failed": failed,
            "spills": spilled,
            "launchers": hasattr(nvidia, "make_launcher") and has_libcuda(),
            "seconds": round(seconds, 1),
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failed or spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
