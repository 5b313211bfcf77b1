"""The native library of a visit to a GPU: carried or built, of these very sources, with all its CUDA kernels.

``python -m benchmarks.gpu.library`` loads it beside PyTorch and says what it finds, as the first process of
``make gpu-check``; everything else here does without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.stages import Stage
from benchmarks.gpu.toolkit import find_tool
from benchmarks.suite.journal import Journal
from benchmarks.suite.place import ROOT
from benchmarks.suite.results import Writer

STOP = 3
"""Exit code: nothing here can be measured."""
_DIGEST = runpy.run_path(str(ROOT / "csrc" / "digest.py"))


@dataclass(frozen=True)
class Found:
    """The library file that the package would load, and whether it is of these sources."""

    path: Path | None
    #: Why it should not be used; empty if it should.
    problem: str


def find(root: Path = ROOT, cuda: bool = True) -> Found:
    """Looks at the file without loading it; with ``cuda`` it must hold code for GPUs."""
    path = next(iter(sorted((root / "ifdd_kernels").glob("_ops*.so"))), None)
    if path is None:
        return Found(None, "there is none")
    content = path.read_bytes()
    match = re.search(re.escape(_DIGEST["MARK"]) + rb"(\w+)\0", content)
    if match is None or match[1] == b"unknown":
        return Found(path, f"{path.name} does not say what sources it was built from")
    if match[1].decode() != _DIGEST["digest"](root):
        return Found(path, f"{path.name} was built from other sources than these")
    if cuda and b".nv_fatbin" not in content:
        return Found(path, f"{path.name} was built without CUDA kernels")
    return Found(path, "")


def expected_ops(root: Path = ROOT) -> set[str]:
    """Names of the ops that the CUDA sources register, backward ops too."""
    files = sorted((root / "csrc" / "cuda").glob("*.cu"))
    return {name for file in files for name in re.findall(r'\bm\.impl\("(\w+)"', file.read_text())}


def build(capability: str, limit_s: float) -> Stage:
    """The build in place, for the architecture of a device ("9.0") alone and with a job a core."""
    major, _, minor = capability.partition(".")
    # Kernels that use the matrix unit of one generation need its own ("a") target.
    own = f"{major}{minor}a-real" if int(major) >= 9 else f"{major}{minor}-real"
    compiler = find_tool("nvcc")
    folders = [str(Path(compiler).parent)] if compiler else []
    environment: Mapping[str, str] = {
        "MAX_JOBS": str(os.cpu_count() or 1),
        "IFDD_NATIVE": "1",
        "IFDD_CUDA": "ON",
        "IFDD_CUDA_ARCHS": os.environ.get("IFDD_CUDA_ARCHS", own),
        "PATH": os.pathsep.join((*folders, os.environ.get("PATH", ""))),
        # setup.py would take CUDA_HOME's alone, which need not be complete.
        **({"CUDACXX": compiler} if compiler else {}),
    }
    skip = "" if compiler else "there is no nvcc"
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    return Stage("build", command, limit_s, environment, skip=skip)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; :data:`STOP` if the device or a CUDA kernel is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.library", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args(arguments)

    import torch

    import ifdd_kernels
    from benchmarks.suite import machine
    from ifdd_kernels import _library

    on_gpu = options.device == "cuda"
    info = ifdd_kernels.build_info()
    missing = sorted(expected_ops() - set(info["cuda_ops"])) if on_gpu else []
    problem = foreign = ""
    if on_gpu and not torch.cuda.is_available():
        problem = "PyTorch finds no CUDA device"
    elif not info["native"]:
        problem = f"the native library is not loaded: {info['reason']}"
    elif missing:
        have = len(expected_ops()) - len(missing)
        problem = (
            f"{info['path']} has {have} of {len(expected_ops())} CUDA ops, without {', '.join(missing)}; "
            "build it with IFDD_CUDA=ON, or remove it and it is built here"
        )
    elif on_gpu:
        foreign = _library.without_code()
        problem = foreign or _sum_on_device()
    facts = {} if problem else machine.describe(options.device, torch.get_num_threads())
    journal = Journal.of_process()
    row = {
        "problem": problem,
        "for_another_gpu": bool(foreign),
        **({} if problem else {"facts": facts}),
        "build": _plain(info),
    }
    if journal.path is not None:
        Writer(journal.path).write("library", stage="library", **row)
    print(json.dumps(row["build"]))
    what = f"{len(info['cuda_ops'])} CUDA ops" if on_gpu else f"{len(info['cpu_ops'])} CPU ops"
    print(f"STOP: {problem}" if problem else f"{what}, torch {torch.__version__}, {facts['device']}")
    return STOP if problem else 0


def _plain(info: Mapping[str, object]) -> dict[str, object]:
    """The build, without the names of the ops and this machine's folders."""
    left_out = ("cpu_ops", "path", "reason")
    return {name: value for name, value in info.items() if name not in left_out}


def _sum_on_device() -> str:
    """Whether a device that is there also computes: what is wrong, or nothing."""
    import torch

    try:
        total = float(torch.ones(1000, device="cuda").sum())
    except RuntimeError as error:
        return f"the device does not compute: {error}"
    return "" if total == 1000 else f"the device adds a thousand ones up to {total}"


if __name__ == "__main__":
    raise SystemExit(main())
