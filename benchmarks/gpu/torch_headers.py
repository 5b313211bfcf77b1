"""Whether all sources compile with the oldest supported torch: no library is built, only syntax is checked.

    python -m benchmarks.gpu.torch_headers             against the oldest and the installed torch's headers
    python -m benchmarks.gpu.torch_headers --include F against the headers in folder F alone

The oldest torch is ``IFDD_TORCH_TARGET`` of CMakeLists.txt. Its headers come from the wheel, which is
downloaded once; they are kept in ``IFDD_HEADERS_CACHE`` or the user's cache. Only where there is no
network the check is left out, which is the last line printed; ``IFDD_REQUIRE_HEADERS=1`` makes an error of
that.

Commands are those of CMake. What the installed torch compiles anyway is not compiled here again: with its
headers, only the CUDA sources are.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite.place import ROOT

#: One wheel for all: headers do not depend on the Python or the machine they are read on.
PLATFORM = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--only-binary=:all:")
#: What pip says when nothing answers. Any other failure is an error: a wrong index, a full disk, no pip.
NO_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|Temporary failure in name resolution"
    "|Network is unreachable|No route to host"
)
#: The emulator's stand-ins for CUDA's headers, which any C++ compiler reads.
PORTABLE = ("tests/emulator/include", "csrc", "csrc/include")


class NoNetworkError(RuntimeError):
    """The headers are not in the cache and nothing answers."""


@dataclass(frozen=True)
class Check:
    """The syntax check of one source."""

    source: str
    command: tuple[str, ...]
    folder: Path

    def run(self) -> str:
        """The compiler's messages where it refuses the source, else nothing."""
        done = subprocess.run(self.command, cwd=self.folder, capture_output=True, text=True)
        return (
            "" if done.returncode == 0 else (done.stderr + done.stdout).strip() or f"exit {done.returncode}"
        )


def oldest_version(root: Path = ROOT) -> str:
    """The oldest supported release, "2.11.0"."""
    found = re.search(r"set\(IFDD_TORCH_TARGET (\d+\.\d+) ", (root / "CMakeLists.txt").read_text())
    if found is None:
        raise RuntimeError("CMakeLists.txt does not set IFDD_TORCH_TARGET")
    return f"{found[1]}.0"


def version_of(include: Path) -> str:
    """The torch that headers belong to; raises RuntimeError if they are not torch's."""
    path = include / "torch" / "headeronly" / "version.h"
    found = re.search(r'define TORCH_VERSION\s+\\?\s*"([^"]+)"', path.read_text()) if path.is_file() else None
    if found is None:
        raise RuntimeError(f"{include}: no headers of torch")
    return found[1]


def cache_folder() -> Path:
    """Where downloaded headers are kept."""
    override = os.environ.get("IFDD_HEADERS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override) if override else Path(base) / "ifdd_kernels" / "torch_headers"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that died is free."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def headers(version: str, cache: Path | None = None) -> Path:
    """The include folder of a release, downloaded unless that was done before.

    A folder of that name is complete: it is renamed into place as a whole, by one process at a time.

    Raises:
        NoNetworkError: nothing answers.
        RuntimeError: the download failed otherwise.
    """
    cache = cache or cache_folder()
    target = cache / f"torch-{version}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"torch-{version}.lock"):
            if not target.is_dir():  # another process was first
                _fetch(version, target)
    found = version_of(target)
    if found != version:
        raise RuntimeError(f"{target} holds the headers of torch {found}; delete it")
    return target


def _fetch(version: str, target: Path) -> None:
    for leftover in target.parent.glob(f"{target.name}-part-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-part-", dir=target.parent) as folder:
        print(f"downloading the wheel of torch {version} for its headers (once)", flush=True)
        wheel = _download(version, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(folder, names)
        (Path(folder) / "torch" / "include").rename(target)


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "2", "--timeout", "30"]
    command += [*PLATFORM, *shlex.split(os.environ.get("PIP_ARGS", "")), "--dest", str(folder)]
    done = subprocess.run([*command, f"torch=={version}"], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()
        if NO_NETWORK.search(said):
            raise NoNetworkError(f"torch {version} cannot be downloaded: {said.splitlines()[-1]}")
        raise RuntimeError(f"the download of torch {version} failed, exit {done.returncode}:\n{said}")
    return next(folder.glob("*.whl"))


@functools.cache
def _syntax_option() -> bool:
    """Whether nvcc is there and can leave it at checking."""
    nvcc = shutil.which("nvcc")
    return nvcc is not None and "--fdevice-syntax-only" in _output(nvcc, "--help")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def checks(include: Path, nvcc: bool, root: Path = ROOT) -> list[Check]:
    """How the sources that see torch are checked against headers; CUDA sources by nvcc or without.

    Raises:
        RuntimeError: CMake refuses.
    """
    with tempfile.TemporaryDirectory() as build:
        options = {
            "Python_EXECUTABLE": sys.executable,
            "IFDD_TORCH_INCLUDE": include,
            "IFDD_CUDA": "ON" if nvcc else "OFF",
            "IFDD_CUDA_ARCHS": "90a-virtual",
            "IFDD_WERROR": "ON",
        }
        command = ["cmake", "-S", str(root), "-B", build, "-G", "Ninja"]
        done = subprocess.run(
            [*command, *(f"-D{k}={v}" for k, v in options.items())], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"cmake failed:\n{done.stdout}{done.stderr}")
        entries = json.loads((Path(build) / "compile_commands.json").read_text())
    found = []
    for entry in entries:
        command = shlex.split(entry["command"])
        if str(include) not in command:  # inner loops and the Python module know nothing of torch
            continue
        source = Path(entry["file"])
        # Written nowhere: the output is dropped, and so is "-c".
        place = command.index("-o")
        command = [a for i, a in enumerate(command) if i not in (place, place + 1) and a != "-c"]
        if source.suffix == ".cu":
            command += ["--cuda", "--fdevice-syntax-only", "-o", os.devnull]
        else:
            command += ["-fsyntax-only"]
        found.append(Check(str(source.relative_to(root)), tuple(command), root))
    if not nvcc:
        found += _portable(found[0], include, root)
    return found


def _portable(like: Check, include: Path, root: Path) -> list[Check]:
    """CUDA sources as C++: torch's headers and the kernels' own, the emulator's in place of CUDA's.

    ``like`` is the check of a C++ source, which has the definitions that all have.
    """
    definitions = [a for a in like.command if a.startswith("-DTORCH_")]
    folders = [f"-I{root / folder}" for folder in ("csrc/cuda", *PORTABLE)]
    # device.h is the real one: quoted names are looked for in order.
    order = [f"-I{root / 'csrc'}", *folders]
    command = [like.command[0], "-std=c++17", "-fsyntax-only", "-fvisibility=hidden", "-DUSE_CUDA"]
    command += [*definitions, *order, "-isystem", str(include), "-Wno-attributes", "-x", "c++"]
    sources = sorted((root / "csrc" / "cuda").glob("*.cu"))
    return [Check(str(s.relative_to(root)), (*command, str(s)), root) for s in sources]


def run(found: Sequence[Check], jobs: int) -> dict[str, str]:
    """Runs checks at the same time; messages by source where there are any."""
    with ThreadPoolExecutor(jobs) as pool:
        messages = list(pool.map(Check.run, found))
    return {check.source: said for check, said in zip(found, messages, strict=True) if said}


def installed_include() -> Path:
    """Of the torch that is installed here."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    return Path(spec.origin).parent / "include"


def _report(include: Path, found: Sequence[Check], how: str, jobs: int) -> bool:
    begin = time.perf_counter()
    wrong = run(found, jobs)
    for source, said in wrong.items():
        print(f"{source} with the headers of torch {version_of(include)}:\n{said}", flush=True)
    kinds = [sum(c.source.endswith(end) for c in found) for end in (".cpp", ".cu")]
    print(
        f"torch {version_of(include)}: {kinds[0]} C++ and {kinds[1]} CUDA sources ({how}),"
        f" {len(wrong)} refused, {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    return not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a source does not compile, or oldest headers are demanded and not there."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help="checks at the same time")
    parser.add_argument("--include", type=Path, help="an include folder of torch, in place of both")
    options = parser.parse_args(arguments)
    nvcc = _syntax_option()
    how = "by nvcc" if nvcc else "as C++, since there is no nvcc that checks syntax alone"
    if options.include:
        include = options.include.resolve()
        return 0 if _report(include, checks(include, nvcc), how, options.jobs) else 1

    newest = installed_include()
    cuda = [check for check in checks(newest, nvcc=False) if check.source.endswith(".cu")]
    right = _report(newest, cuda, "as C++", options.jobs)
    try:
        oldest = headers(oldest_version())
    except NoNetworkError as error:
        required = os.environ.get("IFDD_REQUIRE_HEADERS", "0") not in ("", "0")
        print(
            f"!!! {'FAILED' if required else 'SKIPPED'}: the check against the oldest torch. {error}",
            flush=True,
        )
        return 1 if required or not right else 0
    return 0 if _report(oldest, checks(oldest, nvcc), how, options.jobs) and right else 1


if __name__ == "__main__":
    raise SystemExit(main())
