"""Compiles ahead what Triton would otherwise compile at each first launch, one after the other.

    python -m benchmarks.gpu.specialisations --jobs 16          into Triton's cache, for the GPU that is there
    python -m benchmarks.gpu.specialisations --arch 90 --check  without one, and look at what was compiled
    python -m benchmarks.gpu.specialisations --arch 90 --list   only say what there is

For the launches of :mod:`benchmarks.gpu.questions`. Triton compiles a kernel anew for integers that are 1 or
a multiple of 16 and for pointers that are: both are derived from the arguments as a launch derives them. What
was compiled through the stand-in driver for an architecture is what a launch on such a GPU looks for; what is
not found here is compiled at its first launch.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver
from triton.runtime.jit import MockTensor, compute_cache_key

from benchmarks.gpu.compilation import Compilation, StandIn
from benchmarks.gpu.compilation import spills as spills_of
from benchmarks.gpu.processes import LIMIT_S, Result, in_processes
from benchmarks.gpu.questions import PARTS, Question, shown
from ifdd_kernels.triton._runtime import Kernel, Launch
from ifdd_kernels.triton._tuning import Config


class Pointer(MockTensor):  # type: ignore[misc]
    """A tensor as the compiler sees it: its dtype, and the place of its first element among 16 bytes.

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
        """The kernel that Triton compiles."""
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
    """The specialisation of a launch in one of its configurations."""
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


def answer(question: Question, architecture: int) -> list[Specialisation]:
    """The specialisations that the launches of a question need, each once, in their order."""
    driver.set_active(StandIn(architecture))
    kept: dict[str, Specialisation] = {}
    for call in question(architecture):
        for launch in call.launches:
            for config in launch.configs if call.every else launch.configs[:1]:
                one = specialisation(call.op, call.label, architecture, launch, config)
                kept.setdefault(one.key, one)
    return list(kept.values())


def spills(row: dict[str, Any] | None) -> int:
    """Local stores and loads of a kernel."""
    return 0 if row is None else int(row.get("spill_stores", 0)) + int(row.get("spill_loads", 0))


def find(
    questions: Sequence[Question], architecture: int, jobs: int
) -> tuple[list[Specialisation], dict[str, str]]:
    """All specialisations, each once, and the questions that could not be answered with the reason."""
    names = [shown(question) for question in questions]
    answers = in_processes(names, lambda i: answer(questions[i], architecture), jobs)
    kept: dict[str, Specialisation] = {}
    for result in answers:
        for one in result.value or []:
            kept.setdefault(one.key, one)
    return list(kept.values()), {result.name: result.problem for result in answers if result.problem}


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
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
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
