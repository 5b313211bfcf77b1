"""Chooses the native build: whether there is one, its programs, and its folder, named after them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What an isolated native build installs beside torch.
REQUIREMENTS = ("cmake>=3.24", "ninja", "pybind11>=3")
#: In each build folder: what it was made with.
RECORD = "toolchain.json"
#: Read by CMake and compilers when a folder is configured, or at every call: other values, another build.
VARIABLES = (
    "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS",
    "CMAKE_PREFIX_PATH", "CMAKE_TOOLCHAIN_FILE", "CMAKE_CXX_COMPILER_LAUNCHER",
    "CMAKE_CUDA_COMPILER_LAUNCHER", "CPATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH",
)  # fmt: skip


class BuildError(Exception):
    """Something that a build needs is not there, or was asked for wrongly; the message says what."""


@dataclass(frozen=True)
class Choice:
    """Whether the native library is built, and why not."""

    native: bool
    #: One of :data:`BY_CHOICE` and :data:`NO_COMPILER`; empty for a native build.
    reason: str = ""


BY_CHOICE = "IFDD_NATIVE=0"
NO_COMPILER = "no C++ compiler was found (c++, g++, clang++)"


def native_choice() -> Choice:
    """The choice between native and pure Python, from ``IFDD_NATIVE`` and the programs of the machine.

    Raises:
        BuildError: another value than 0, 1 or none; ``CXX`` names no program; 1 without a compiler.
    """
    wanted = os.environ.get("IFDD_NATIVE", "").strip()
    if wanted not in ("", "0", "1"):
        raise BuildError(f"IFDD_NATIVE must be 0, 1 or unset, got {wanted!r}")
    if wanted == "0":
        return Choice(False, BY_CHOICE)
    if find_compiler() is not None:
        return Choice(True)
    if wanted == "1":
        raise BuildError(f"IFDD_NATIVE=1, but {NO_COMPILER}")
    return Choice(False, NO_COMPILER)


def _words(variable: str) -> list[str]:
    """A command in a variable of the environment."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise BuildError(f"{variable}={os.environ[variable]}: {error}") from error


def find_compiler() -> str | None:
    """The C++ compiler, as a path: $CXX, or the first of the common names.

    Raises:
        BuildError: ``CXX`` names no program, or is not a command.
    """
    if words := _words("CXX"):
        found = shutil.which(words[0])
        if found is None:
            raise BuildError(
                f"CXX={os.environ['CXX']}: there is no such program; correct it, or set IFDD_NATIVE=0"
            )
        return found
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def find_nvcc() -> tuple[str | None, str]:
    """The CUDA compiler, as a path, and what is wrong where there is none.

    $CUDACXX, $CUDA_HOME or $CUDA_PATH decides, the first that is set: another toolkit than the one it names
    is never taken. Without them it is nvcc on the path.
    """
    if words := _words("CUDACXX"):
        found = shutil.which(words[0])
        return found, "" if found else f"CUDACXX={os.environ['CUDACXX']}: there is no such program"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            found = shutil.which("nvcc", path=str(Path(home) / "bin"))
            return found, "" if found else f"{variable}={home}: there is no bin/nvcc"
    found = shutil.which("nvcc")
    return found, "" if found else "nvcc is not on the path, and CUDACXX, CUDA_HOME and CUDA_PATH are not set"


def find_tool(name: str) -> str:
    """cmake or ninja, as a path: the first on the path, else that of this Python's environment.

    Raises:
        BuildError: neither is there.
    """
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise BuildError(
            f"{name} was not found: `pip install cmake ninja pybind11` before `pip install"
            " --no-build-isolation`, or set IFDD_NATIVE=0 for pure Python"
        )
    return found


def version_of(program: str) -> str:
    """The answer of a program to ``--version``; empty if it does not answer."""
    try:
        ran = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return ran.stdout.strip()


@dataclass(frozen=True)
class Torch:
    """The torch that is compiled against."""

    folder: str
    version: str
    #: Whether it is that of the environment around an isolated build, which the build itself cannot import.
    outside: bool = False


_PLACE = (
    "import importlib.metadata as m, importlib.util as u; s = u.find_spec('torch');"
    "print(s.submodule_search_locations[0], m.version('torch'), sep='\\n')"
)


@functools.cache
def find_torch() -> Torch | None:
    """The torch of this Python, else of the environment that an isolated build by pip is for.

    pip isolates a build with variables of the environment only: the same Python without them sees what it
    always sees. So nothing is downloaded where torch is installed, and the library is compiled against that
    one. Other front ends (``python -m build``, uv) make an environment for the build, which knows no other.
    """
    spec = importlib.util.find_spec("torch")
    # What an uninstalled torch may leave is a folder without code, which has no origin.
    if spec is not None and spec.origin and spec.submodule_search_locations:
        return Torch(spec.submodule_search_locations[0], importlib.metadata.version("torch"))
    command = [sys.executable, "-E", "-c", _PLACE]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir(), check=False)
    if ran.returncode != 0:
        return None
    folder, version = ran.stdout.splitlines()[-2:]
    torch = Torch(folder, version, outside=True)
    return torch if _numbers(version) >= _numbers(oldest_torch()) else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def oldest_torch() -> str:
    """The oldest torch that the library supports, from CMakeLists.txt."""
    found = re.search(r"set\(IFDD_TORCH_TARGET (\S+) ", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert found is not None, "CMakeLists.txt names no IFDD_TORCH_TARGET"
    return found[1]


def requirements() -> list[str]:
    """Requirements of an isolated build: none for pure Python, torch only if there is none yet.

    Raises:
        BuildError: as :func:`native_choice`.
    """
    if not native_choice().native:
        return []
    return [*REQUIREMENTS, *([] if find_torch() else [f"torch>={oldest_torch()}"])]


@dataclass(frozen=True)
class Toolchain:
    """The programs of a native build."""

    compiler: str
    cmake: str
    ninja: str
    torch: Torch
    #: None: no CUDA compiler.
    nvcc: str | None
    #: Why there is none, in words.
    without_nvcc: str = ""

    @staticmethod
    def find() -> Toolchain:
        """That of this environment.

        Raises:
            BuildError: a part is missing.
        """
        compiler, torch = find_compiler(), find_torch()
        if compiler is None:
            raise BuildError(NO_COMPILER)
        if torch is None:
            raise BuildError(
                "torch was not found: `pip install torch` first, or set IFDD_NATIVE=0 for pure Python"
            )
        return Toolchain(compiler, find_tool("cmake"), find_tool("ninja"), torch, *find_nvcc())

    def record(self) -> dict[str, object]:
        """All that decides what a build folder holds: sources, programs and their versions, variables."""
        programs = {"compiler": self.compiler, "cmake": self.cmake, "ninja": self.ninja, "nvcc": self.nvcc}
        spec = importlib.util.find_spec("pybind11")
        return {
            "source": str(ROOT),
            "programs": {
                name: [path, os.path.realpath(path), version_of(path)]
                for name, path in programs.items()
                if path
            },
            "python": [sys.executable, sys.version],
            "torch": [self.torch.folder, self.torch.version],
            "pybind11": None if spec is None else [spec.origin, importlib.metadata.version("pybind11")],
            "variables": {name: os.environ[name] for name in ("CXX", *VARIABLES) if os.environ.get(name)},
        }

    def environment(self) -> dict[str, str]:
        """The variables that CMake runs with: it takes the programs that the folder is named after."""
        variables = dict(os.environ)
        if not variables.get("CXX", "").strip():
            variables["CXX"] = self.compiler
        if self.nvcc is not None and not variables.get("CUDACXX", "").strip():
            variables["CUDACXX"] = self.nvcc
        if self.torch.outside:
            # CMake's Python leaves the isolation and finds torch, but first what was installed for the build.
            names = ("pybind11", "cmake", "ninja")
            origins = (spec.origin for name in names if (spec := importlib.util.find_spec(name)) is not None)
            folders = dict.fromkeys(str(Path(origin).parent.parent) for origin in origins if origin)
            variables["PYTHONPATH"] = os.pathsep.join(folders)
            variables.pop("PYTHONNOUSERSITE", None)
        return variables


def build_folder(record: Mapping[str, object], kind: str, builds: Path = ROOT / "build") -> Path:
    """The folder for a build with these programs, made where it is not there yet.

    Folders that no build can use again are removed: those of a checkout that has moved since, and of programs
    that are gone (each isolated build has its own).

    Args:
        record: :meth:`Toolchain.record`.
        kind: what the user chooses between, such as the version of Python and sanitizers; a part of the name.
        builds: where the folders lie.
    """
    text = json.dumps(record, indent=1, sort_keys=True)
    for other in sorted(builds.glob(f"cmake-*/{RECORD}")):
        if _is_dead(other):
            print(
                f"ifdd-kernels: removing {other.parent}: its sources or programs are gone",
                flush=True,
            )
            shutil.rmtree(other.parent)
    folder = builds / f"cmake-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECORD
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        # In one step: a build beside this one removes folders whose record it cannot read.
        beside = folder / f".{RECORD}.{os.getpid()}"
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    return folder


def _is_dead(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads(file.read_text(encoding="utf-8"))
        used = [
            record["python"][0],
            record["torch"][0],
            *(program[0] for program in record["programs"].values()),
        ]
        return record["source"] != str(ROOT) or not all(map(os.path.exists, used))
    return True  # cut off while it was written
