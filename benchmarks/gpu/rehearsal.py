"""``make rehearse-gpu``: what happens on the GPU machine, done here with that machine's versions and no
device.

    python -m benchmarks.gpu.rehearsal                    all stages, with the Python that runs this
    python -m benchmarks.gpu.rehearsal --only ops,triton  these; the others stay as they are in the result
    python -m benchmarks.gpu.rehearsal --requirements     what pip is to install for it

Each stage is a process with a log of its own, and none hides another: the environment, the library built
with nvcc for sm_90a, that it loads with every CUDA op, the op tests on the CPU, the kernels of Triton in
its interpreter, every specialisation that a GPU will ask for compiled (and no spills), gpu-check up to its
first launch, and what of it runs on a CPU. All of it runs in a copy of the checkout, so that the library
built for other versions stays. The result, with a hash of the sources it belongs to, is
``benchmarks/results/rehearsal.json``; a test asks for a new one when they have changed.

Only the standard library is needed to run this module.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import judges, library, sources
from benchmarks.gpu.judges import Judgement
from benchmarks.suite import place
from benchmarks.suite.place import RESULTS, ROOT

RESULT = RESULTS / "rehearsal.json"
FOLDER = ROOT / "build" / "rehearsal"

#: What a rehearsal needs of a checkout.
COPIED = (
    *("CMakeLists.txt", "pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "Makefile"),
    *("build_support", "csrc", "ifdd_kernels", "python", "benchmarks", "tests", "configs", "docs"),
)
#: The GPU machine's versions. Triton comes with torch.
VERSIONS = {"python": "3.12", "torch": "2.11.0", "triton": "3.6.0", "torchvision": "0.26.0"}
#: What that machine has beside them, and what the interpreter needs: Triton 3.6 wants a NumPy before 2.4.
REQUIREMENTS = (
    *(f"{name}=={VERSIONS[name]}" for name in ("torch", "triton", "torchvision")),
    *("numpy<2.4", "cmake>=3.24", "ninja", "pybind11>=3", "setuptools>=77", "wheel"),
    *("pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist", "hypothesis", "safetensors", "timm"),
)
#: Tests of the ops on the CPU, and that their library is what it says.
OP_TESTS = (
    *("tests/ops", "tests/packaging/test_library.py"),
    *("tests/fake_gpu/test_can_run.py", "tests/fake_gpu/test_architectures.py", "tests/gpu"),
)
#: Without the table of resources, which is that of one Triton: stage "specialisations" looks for spills.
TRITON_TESTS = ("tests/triton", "--ignore=tests/triton/test_resources.py")
#: Steps of gpu-check that are tried on a CPU.
CPU_STEPS = "native ops,native times"

ENVIRONMENT = """
import importlib.metadata as metadata, json, platform, re, sys
found = {"python": platform.python_version()}
for line in sys.argv[1:]:
    name = re.split("[<>=]", line)[0]
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
import torch
found["cuda"] = torch.version.cuda
print(json.dumps(found))
"""
LIBRARY = """
import json, ifdd_kernels
print(json.dumps(ifdd_kernels.build_info()))
"""


@dataclass
class Outcome:
    """How a stage ended: "ok" or "failed", its counts, and what failed by name."""

    name: str
    status: str
    seconds: float = 0.0
    counts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One process, and what its traces say: (exit code, its log) -> counts and failures."""

    name: str
    command: Sequence[str]
    judge: Callable[[int, str], Judgement]
    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 3600.0
    #: More of the environment, made when the stage runs.
    prepare: Callable[[], Mapping[str, str]] = dict


def source_hash(root: Path = ROOT) -> str:
    """Of the sources that a rehearsal belongs to."""
    return sources.hash_of(root, sources.GPU)


def copy_checkout(root: Path, target: Path) -> None:
    """Makes ``target`` the checkout without what was built in it; unchanged files keep their age."""
    wanted = {file.relative_to(root): file for name in COPIED for file in _files(root / name)}
    for relative, file in wanted.items():
        copy = target / relative
        if not copy.is_file() or copy.read_bytes() != file.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    for name in COPIED:
        for copy in list(_files(target / name)):
            if copy.relative_to(target) not in wanted:
                copy.unlink()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and file.suffix not in (".so", ".pyc") and ".egg-info" not in str(file):
            yield file


def stages(tree: Path, python: str, jobs: int) -> list[Stage]:
    """The stages of the rehearsal, in order, in a copy of the checkout."""
    folder = tree.parent
    build = {"IFDD_NATIVE": "1", "IFDD_WERROR": "1", "IFDD_CUDA": "ON", "IFDD_CUDA_ARCHS": "90a-real"}
    versions = partial(judges.environment, versions=VERSIONS)
    loads = partial(judges.library, expected=library.expected_ops(tree))
    found = folder / "specialisations.json"
    check = (python, "-m", "benchmarks.gpu.check")
    on_cpu = ("--device", "cpu", "--budget-s", "900", "--only", CPU_STEPS)
    compiling = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "triton")}
    specialisations = ("-m", "benchmarks.gpu.specialisations", "--arch", "90", "--check", "--jobs", str(jobs))
    return [
        Stage("environment", (python, "-c", ENVIRONMENT, *REQUIREMENTS), versions),
        Stage(
            "build",
            (python, "setup.py", "build_ext", "--inplace"),
            judges.build,
            build | {"MAX_JOBS": str(jobs)},
        ),
        Stage("library", (python, "-c", LIBRARY), loads),
        _tests("ops", OP_TESTS, folder, python, jobs),
        _tests("triton", TRITON_TESTS, folder, python, jobs),
        Stage(
            "specialisations",
            (python, *specialisations, "--out", str(found)),
            partial(judges.specialisations, found=found),
            compiling,
            prepare=lambda: _libcuda(folder, python),
        ),
        # To where it needs the device, and what it measures of a small network on this CPU.
        Stage("gpu-check", (*check, "--out", str(folder / "gpu-check")), judges.stop),
        Stage("gpu-check on a CPU", (*check, *on_cpu, "--out", str(folder / "cpu")), judges.exit_code),
    ]


def _tests(name: str, paths: Sequence[str], folder: Path, python: str, jobs: int) -> Stage:
    report = folder / f"{name}.xml"
    options = ("-p", "no:cacheprovider", "-q", f"--junitxml={report}", "-n", str(jobs), "--dist", "loadfile")
    return Stage(
        name,
        (python, "-m", "pytest", *options, *paths),
        partial(judges.tests, report=report),
        {"TRITON_INTERPRET": "1"},
    )


def _libcuda(folder: Path, python: str) -> dict[str, str]:
    """The environment in which Triton links its launchers against a driver that does nothing.

    Triton 3.6 compiles a C module for every set of argument types. It is linked with the driver, which a
    machine without a GPU does not have: every function of the driver that Triton names is defined, empty.
    """
    where = "import triton.backends.nvidia.driver as d, pathlib; print(pathlib.Path(d.__file__).parent)"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True)
    if found.returncode != 0:  # the stage "environment" says so
        return {}
    texts = [
        file.read_text()
        for file in Path(found.stdout.strip()).glob("driver.*")
        if file.suffix in (".py", ".c")
    ]
    names = sorted({name for text in texts for name in re.findall(r"\b(cu[A-Z]\w+)\(", text)})
    target = folder / "driver"
    target.mkdir(parents=True, exist_ok=True)
    (target / "libcuda.c").write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names))
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "libcuda.c", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=target, check=True)
    paths = os.pathsep.join(filter(None, (str(target), os.environ.get("LD_LIBRARY_PATH", ""))))
    return {"TRITON_LIBCUDA_PATH": str(target), "LD_LIBRARY_PATH": paths}


def run(stage: Stage, tree: Path, say: Callable[[str], None] = print) -> Outcome:
    """Runs a stage with its log beside the copy of the checkout; never raises because of it."""
    for old in (tree.parent / f"{stage.name}.xml", tree.parent / f"{stage.name}.json"):
        old.unlink(missing_ok=True)
    log = tree.parent / f"{stage.name}.log"
    say(f"--- {stage.name}: {' '.join(part for part in stage.command if chr(10) not in part)}")
    begin = time.perf_counter()
    paths = filter(None, (str(tree), str(tree / "python"), os.environ.get("PYTHONPATH", "")))
    programs = (str(Path(stage.command[0]).absolute().parent), os.environ.get("PATH", ""))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join(programs),
        **stage.environment,
    }
    with log.open("w") as file:
        try:
            environment |= stage.prepare()
            code = subprocess.run(
                stage.command, cwd=tree, env=environment, stdout=file, stderr=file, timeout=stage.limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
            file.write(f"\nstopped after {stage.limit_s:.0f} s\n")
        except (OSError, subprocess.CalledProcessError) as error:
            code = 127
            file.write(f"\ncannot begin: {error}\n")
    try:
        counts, failures = stage.judge(code, log.read_text(errors="replace"))
    except (ValueError, KeyError, OSError, StopIteration, ElementTree.ParseError) as error:
        counts, failures = {}, [f"its output cannot be read: {error!r}"]
    status = "failed" if failures else "ok"
    outcome = Outcome(stage.name, status, round(time.perf_counter() - begin, 1), counts, failures)
    say(f"--- {stage.name}: {status} after {outcome.seconds:.0f} s {json.dumps(counts)}")
    for failure in failures[:20]:
        say(f"    {failure}")
    if failures:
        say(f"    log: {log}")
    return outcome


def combined(
    before: Mapping[str, Any], digest: str, outcomes: Sequence[Outcome], names: Sequence[str]
) -> dict[str, Any]:
    """The result: new outcomes, and earlier ones of the same sources for stages that did not run again."""
    rows = {row["name"]: row for row in before.get("stages", []) if before.get("gpu_sources") == digest}
    rows.update({outcome.name: asdict(outcome) for outcome in outcomes})
    environment = rows.get("environment", {}).get("counts", {})
    return {
        "gpu_sources": digest,
        "machine": {"processor": place.cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": environment,
        "stages": [rows[name] for name in names if name in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a stage failed."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", action="store_true", help="print what to install, and end")
    parser.add_argument("--only", help="stages, e.g. ops,triton")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes of a stage")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="for the copy of the checkout and the logs"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="the result")
    options = parser.parse_args(arguments)
    if options.requirements:
        print("\n".join(REQUIREMENTS))
        return 0
    tree = options.folder.resolve() / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    copy_checkout(ROOT, tree)
    plan = stages(tree, sys.executable, options.jobs)
    names = [stage.name for stage in plan]
    chosen = names if options.only is None else options.only.split(",")
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        parser.error(f"no such stage: {', '.join(unknown)}; there are {', '.join(names)}")
    digest = source_hash(tree)
    outcomes: list[Outcome] = []
    for stage in plan:
        if stage.name in chosen:
            outcomes.append(run(stage, tree, say=lambda line: print(line, flush=True)))
            before = json.loads(options.out.read_text()) if options.out.is_file() else {}
            result = combined(before, digest, outcomes, names)
            # At once: of a rehearsal that is cut off there is what it has done.
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = [outcome.name for outcome in outcomes if outcome.status != "ok"]
    print(f"failed: {', '.join(failed)}" if failed else f"{len(outcomes)} stages, all ok")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
