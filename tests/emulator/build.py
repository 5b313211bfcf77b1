"""Compiles CUDA sources for the host emulator and makes their ops callable.

A build is named by a hash of everything that went into it and kept in ``build/emulator``, so it happens once
per change. ``IFDD_EMULATOR_SANITIZE`` (``address,undefined`` or ``thread``) builds with sanitizers; their
runtime must then be loaded before Python, see :func:`sanitizer_environment`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifdd_kernels._operator import OPERATORS

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CACHE = ROOT / "build" / "emulator"
MACHINE = tuple(HERE / "source" / f"{name}.cpp" for name in ("fiber", "machine", "warp", "count"))
HEADERS = (HERE / "include", ROOT / "csrc" / "include", ROOT / "csrc" / "common", ROOT / "csrc" / "cuda")
FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-fno-gnu-unique", "-fvisibility=hidden", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
#: torch's stable ABI of the oldest supported version, as in CMakeLists.txt.
TORCH = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY")
SANITIZE = os.environ.get("IFDD_EMULATOR_SANITIZE", "")
#: What a block may use on sm_86 and sm_89, sm_80 and sm_90.
SHARED_BYTES = (99 * 1024, 163 * 1024, 227 * 1024)

#: Builds that count accesses: the emulator receives a flag, and kernels call it at each access.
COUNT = "-DIFDD_EMULATOR_COUNT"
COUNT_KERNELS = (COUNT, "-fsanitize=thread")

compiler = shutil.which(os.environ.get("CXX", "g++"))


@dataclass(frozen=True)
class Plant:
    """A change of a source, to see that a test notices: one occurrence of ``old`` becomes ``new``."""

    old: str
    new: str = ""
    occurrence: int = 0

    def apply(self, text: str) -> str:
        parts = text.split(self.old)
        assert len(parts) > self.occurrence + 1, f"{self.old!r} occurs {len(parts) - 1} times"
        before, after = parts[: self.occurrence + 1], parts[self.occurrence + 1 :]
        return self.old.join(before) + self.new + self.old.join(after)


def _torch_directory() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _run(command: Sequence[str | Path]) -> None:
    process = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert process.returncode == 0, " ".join(map(str, command)) + "\n" + process.stderr


def _sanitizer_flags() -> list[str]:
    if not SANITIZE:
        return []
    return [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g", "-fno-sanitize-recover=undefined"]


def sanitizer_environment(sanitize: str, log: Path) -> dict[str, str]:
    """The environment in which Python loads builds with sanitizers; their reports go to files ``log.*``."""
    assert compiler is not None
    names = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
    libraries = [
        subprocess.run([compiler, f"-print-file-name={names[part]}"], capture_output=True, text=True)
        for part in sanitize.split(",")
    ]
    return {
        **os.environ,
        "IFDD_EMULATOR_SANITIZE": sanitize,
        "LD_PRELOAD": " ".join(library.stdout.strip() for library in libraries),
        # Python itself leaks; a library that torch loads is not compiled for the thread sanitizer.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={log}",
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:report_thread_leaks=0:log_path={log}",
    }


@functools.cache
def _base_hash() -> str:
    """Of what every build depends on."""
    assert compiler is not None, "no C++ compiler"
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    digest.update("\0".join([version, torch.__version__, SANITIZE, *FLAGS, *TORCH, *COUNT_KERNELS]).encode())
    files = [*MACHINE, *(f for folder in HEADERS for f in sorted(folder.rglob("*.h")))]
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _machine_objects(counting: bool) -> list[Path]:
    """The emulator itself: once for all kernels. The race detector must not see it at work."""
    assert compiler is not None
    objects = []
    races = SANITIZE == "thread"
    flags = ["-DIFDD_EMULATOR_RACES"] if races else _sanitizer_flags()
    if counting:
        flags.append(COUNT)
    for source in MACHINE:
        if source.stem == "count" and not counting:
            continue
        target = CACHE / f"{source.stem}{'-counting' * counting}-{_base_hash()[:16]}.o"
        if not target.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                output = Path(folder) / target.name
                includes = [f"-I{HEADERS[0]}", f"-I{HEADERS[1]}"]
                _run([compiler, *FLAGS, *flags, *includes, "-c", source, "-o", output])
                output.replace(target)
        objects.append(target)
    return objects


@dataclass(frozen=True)
class Counts:
    """Memory accesses of the warps of a launch; a request is one load or store of a warp."""

    kernel: str
    load_requests: int
    #: 32-byte sectors of global memory, and the distinct bytes asked for.
    load_sectors: int
    load_bytes: int
    store_requests: int
    store_sectors: int
    store_bytes: int
    #: Shared memory: loads and stores together, the times its banks were taken for them, and the least times.
    shared_requests: int
    shared_passes: int
    shared_least: int

    @property
    def bank_conflicts(self) -> int:
        """Passes beyond those that the width of the requests needs."""
        return self.shared_passes - self.shared_least


@dataclass(frozen=True)
class Launch:
    """A kernel, demangled, with the threads and the dynamic shared memory of a block."""

    kernel: str
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class Library:
    """A compiled source: its file and the namespace its ops are registered in."""

    path: Path
    namespace: str

    def configure(
        self,
        seed: int,
        multiprocessors: int = 4,
        shared_bytes: int = SHARED_BYTES[0],
        list_only: bool = False,
    ) -> None:
        """Sets how the next launches run; see ``emulator::Settings``."""
        function = ctypes.CDLL(str(self.path)).ifdd_emulator_configure
        function.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int)
        function.restype = None
        function(seed, multiprocessors, shared_bytes, list_only)

    def listed(self) -> list[Launch]:
        """The launches since the last call that were listed instead of run."""
        return [Launch(*row) for row in self._rows("ifdd_emulator_listed", 3)]

    def counted(self) -> list[Counts]:
        """Memory accesses of the launches since the last call; of builds that count."""
        return [Counts(*row) for row in self._rows("ifdd_emulator_counted", 10)]

    def _rows(self, function: str, columns: int) -> list[tuple[Any, ...]]:
        """The records of the library: kernel and numbers."""
        take = getattr(ctypes.CDLL(str(self.path)), function)
        row = (ctypes.c_int64 * columns)()
        rows = []
        while take(row):
            rows.append(tuple(row))
        if not rows:
            return []
        # 0000000000012345 t void ifdd::cuda::(anonymous namespace)::some_kernel<float, 4>(...)
        symbols = subprocess.run(["nm", "-C", self.path], capture_output=True, text=True, check=True).stdout
        names = {int(line[:16], 16): line[19:] for line in symbols.splitlines() if line[:16].strip()}
        return [(names[kernel], *numbers) for kernel, *numbers in rows]


def compile_source(source: Path, plants: Sequence[Plant] = (), counting: bool = False) -> Library:
    """Compiles one .cu file, changed by ``plants``, unless that was done before.

    ``counting`` builds are slower and fill :meth:`Library.counted`.
    """
    assert compiler is not None, "no C++ compiler"
    assert not (counting and SANITIZE), "accesses are counted without sanitizers"
    text = source.read_text()
    for plant in plants:
        text = plant.apply(text)
    name = hashlib.sha256(f"{_base_hash()}\0{source.name}\0{counting}\0{text}".encode()).hexdigest()[:16]
    library = Library(CACHE / f"{source.stem}-{name}.so", f"ifdd_emulated_{name}")
    if library.path.exists():
        return library
    objects = _machine_objects(counting)
    kernel_flags = COUNT_KERNELS if counting else _sanitizer_flags()
    directory = _torch_directory()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        changed = Path(folder) / source.name
        # Messages name the original file.
        changed.write_text(f'#line 1 "{source.relative_to(ROOT)}"\n{text}')
        output = Path(folder) / library.path.name
        compiled = Path(folder) / "kernels.o"
        _run([
            compiler, *FLAGS, *kernel_flags, *TORCH, f"-DIFDD_EMULATOR_NAMESPACE={library.namespace}",
            f"-I{HEADERS[0]}", f"-I{HEADERS[1]}", f"-I{ROOT / 'csrc'}", f"-I{source.parent}",
            "-isystem", directory / "include", "-x", "c++", "-c", changed, "-o", compiled,
        ])  # fmt: skip
        # Not with the flag of counting builds: the functions it calls are the emulator's.
        _run([
            compiler, *_sanitizer_flags(), "-shared", compiled, *objects,
            f"-L{directory / 'lib'}", "-ltorch", "-ltorch_cpu", "-o", output,
        ])  # fmt: skip
        output.replace(library.path)
    return library


#: Keeps the fragments that define schemas alive.
_fragments: dict[str, torch.library.Library] = {}


def load(library: Library, schemas: dict[str, str]) -> Any:
    """Registers the library's kernels for the given schemas; returns the namespace, as ``torch.ops.x``."""
    if library.namespace not in _fragments:
        fragment = torch.library.Library(library.namespace, "FRAGMENT")
        for name, schema in schemas.items():
            fragment.define(name + schema)
        _fragments[library.namespace] = fragment
        torch.ops.load_library(str(library.path))
    return getattr(torch.ops, library.namespace)


class EmulatedOp:
    """An op on its CUDA kernels: ``forward`` and ``backward`` take the arguments of its schemas."""

    def __init__(self, name: str, plants: Sequence[Plant] = (), counting: bool = False) -> None:
        self.operator = OPERATORS[name]
        self.library = compile_source(ROOT / "csrc" / "cuda" / f"{name}.cu", plants, counting)
        schemas = {name: self.operator.schema}
        if self.operator.backward is not None:
            schemas[f"{name}_backward"] = self.operator.backward.schema
        ops = load(self.library, schemas)
        self.forward = getattr(ops, name).default
        if self.operator.backward is not None:
            self.backward = getattr(ops, f"{name}_backward").default
