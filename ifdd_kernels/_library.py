"""Loads the native library and says what it is, or why it is not there."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import json
import os
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

NAMESPACE = "ifdd"
Capability = tuple[int, int]
#: What the CUDA sources need at least: asynchronous copies and products of bfloat16.
OLDEST_GPU: Capability = (8, 0)
IN_PLACE = "pip install --no-build-isolation -e ."
HOW_TO_GET_IT = (
    "to get it, install a C++17 compiler, run `pip install cmake ninja pybind11 setuptools` and, in a"
    f" checkout, `IFDD_NATIVE=1 {IN_PLACE}`"
)
#: The package that was imported.
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class _State:
    path: Path | None
    reason: str
    #: Kernels that this installation should have: it is not in order.
    lost: bool = False
    #: Said once, at import. Not where pure Python was asked for.
    warn: bool = False


_state: _State | None = None


def _library_in(folder: Path) -> Path | None:
    """The kernels' library in a folder of the package: one file for every Python."""
    return next(iter(sorted(folder.glob("_ops*.so"))), None)


def _runtime_in(folder: Path) -> Path | None:
    """The module with build information, for the Python that runs: those of others may lie beside it."""
    names = (folder / f"_runtime{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in names if path.is_file()), None)


def load() -> bool:
    """Loads the native kernels once; returns whether they are loaded. Never raises for want of them.

    Without them the ops run on the reference, and :func:`failure` has the reason. Unless pure Python was
    installed on purpose, a ``RuntimeWarning`` says so, once.
    """
    global _state
    if _state is None:
        _state = _load(FOLDER)
        if _state.warn:
            what = "ifdd_kernels runs without its native kernels, on slower plain PyTorch"
            warnings.warn(f"{what}: {_state.reason}", RuntimeWarning, stacklevel=3)
    return _state.path is not None


def _load(folder: Path) -> _State:
    path = _library_in(folder)
    if path is None:
        return _without_library(folder)
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        problem = f"{path} does not load with torch {torch.__version__}: {' '.join(str(error).split())}"
        hidden = hidden_copy(folder)
        also = "" if hidden is None else f", and hides {hidden}, which has a library, too"
        cure = _cure(folder, hidden=hidden is not None)
        return _State(None, f"{problem}{also}; {cure}", lost=True, warn=True)
    return _State(path, "")


def _without_library(folder: Path) -> _State:
    if (hidden := hidden_copy(folder)) is not None:
        reason = f"Python imported {folder}, which has no native library and hides {hidden}, which has one"
        return _State(None, f"{reason}; {_cure(folder, hidden=True)}", lost=True, warn=True)
    missing = f"no _ops*.so in {folder}"
    chosen = _installed_without(folder)
    if chosen is None:
        what = "it was never built" if _is_checkout(folder) else "yet it was not installed as pure Python"
        return _State(None, f"{missing}: {what}; {_cure(folder)}", lost=True, warn=True)
    reason = f"{missing}: installed as pure Python, because of {chosen}; {HOW_TO_GET_IT}"
    return _State(None, reason, warn=not chosen.startswith("IFDD_NATIVE"))


def _cure(folder: Path, hidden: bool = False) -> str:
    """How a copy of the package gets its native library; or how another one that it hides is imported."""
    if not _is_checkout(folder):
        return _leave(folder) if hidden else HOW_TO_GET_IT
    build = f"run `{IN_PLACE}` in {folder.parent}"
    return f"{_leave(folder)}, or {build} to build it in place" if hidden else f"{build}; {HOW_TO_GET_IT}"


def _leave(folder: Path) -> str:
    """How Python imports another copy than the first it finds."""
    variable = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if any(entry and _same(Path(entry), folder.parent) for entry in variable):
        return f"take {folder.parent} off PYTHONPATH"
    if _same(Path.cwd(), folder.parent):
        return "start Python in another folder"
    return f"take {folder.parent} off sys.path"


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _is_checkout(folder: Path) -> bool:
    """Whether a folder of the package lies in the sources."""
    return (folder.parent / "setup.py").is_file() and (folder.parent / "csrc").is_dir()


def hidden_copy(folder: Path) -> Path | None:
    """The copy of the package with a native library that Python would import if not for ``folder``."""
    others = (copy for copy in _copies() if not _same(copy, folder))
    return next((copy for copy in others if _library_in(copy) is not None), None)


def _copies() -> Iterator[Path]:
    """Folders of the package that Python finds, in the order it would take them."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        ways: list[list[str] | None] = [None]
        if finder is importlib.machinery.PathFinder:
            ways = [[entry or str(Path.cwd())] for entry in sys.path]
        elif not getattr(finder, "__module__", "").startswith("__editable__"):
            continue  # of other finders only those of editable installations know packages
        for way in ways:
            spec = find(__package__, way) if find is not None else None
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin).parent


def _installed_without(folder: Path) -> str | None:
    """Why a copy was installed as pure Python, as setup.py has left word; None where it was not."""
    beside = metadata.distributions(name="ifdd-kernels", path=[str(folder.parent)])
    editable = (found for found in metadata.distributions(name="ifdd-kernels") if _is_editable(found, folder))
    for found in (*beside, *editable):
        if note := found.read_text("native.txt"):
            return note.strip()
    return None


def _is_editable(found: metadata.Distribution, folder: Path) -> bool:
    """Whether an installation is an editable one of these sources: its metadata lie elsewhere then."""
    try:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        editable = bool(origin["dir_info"]["editable"])
        return editable and _same(Path(unquote(urlsplit(origin["url"]).path)), folder.parent)
    except (ValueError, TypeError, KeyError):
        return False


def loaded() -> bool:
    """Whether the native kernels are loaded."""
    return load()


def path() -> Path | None:
    """The loaded library."""
    load()
    return _state.path if _state is not None else None


def failure() -> str:
    """Why the native kernels are not loaded and how to get them; empty if they are."""
    load()
    return _state.reason if _state is not None else ""


def problems(folder: Path) -> list[str]:
    """Faults of the native library that concern a user who starts Python in ``folder``.

    A missing library, unless pure Python was installed; one of other sources than those beside it; and a copy
    of the package without a library that Python would import in that folder in place of this one.
    """
    load()
    assert _state is not None
    found = [_state.reason] if _state.lost else []
    if _state.path is not None and (stale := _stale(_state.path)):
        found.append(stale)
    here = folder / FOLDER.name
    other = (here / "__init__.py").is_file() and not _same(here, FOLDER)
    if _state.path is not None and other and _library_in(here) is None:
        cure = f"start it in another folder, or run `{IN_PLACE}` there"
        found.append(f"Python started in {folder} imports {here}, which has no native library: {cure}")
    return found


def _stale(library: Path) -> str:
    """Why a library is not that of the sources beside it; empty if it is, or there are none."""
    root = FOLDER.parent
    if not _is_checkout(FOLDER) or not (root / "csrc" / "digest.py").is_file():
        return ""
    rule = runpy.run_path(str(root / "csrc" / "digest.py"))
    expected: str = rule["digest"](root)
    mark: bytes = rule["MARK"]
    if mark + expected.encode() in library.read_bytes():
        return ""
    return f"{library} was built from other sources than {root / 'csrc'}; run `{IN_PLACE}` in {root} again"


def c_function(name: str, result: Any, *arguments: Any) -> Any:
    """A C function of the loaded library; None without it, or from sources of before it.

    The library itself is asked, for any Python can load it: the module ``_runtime`` belongs to one version.
    """
    if not load():
        return None
    assert _state is not None
    function = getattr(ctypes.CDLL(str(_state.path)), name, None)
    if function is not None:
        function.restype, function.argtypes = result, arguments
    return function


def ask(function: str, answer: Any) -> Any:
    """The result of a C function without arguments; None if the library has no such function."""
    ask = c_function(function, answer)
    return None if ask is None else ask()


# Kernels are registered once, by load(): the answer stays, and scanning the op names takes milliseconds.
@functools.cache
def native_ops(device: str = "cpu") -> frozenset[str]:
    """Names of the ops, backward ops too, for which the dispatcher has a native kernel of a device type."""
    load()
    key = torch._C._dispatch_key_for_device(device)
    prefix = f"{NAMESPACE}::"
    return frozenset(
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix) and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    )


def capability(index: int | None = None) -> Capability | None:
    """Compute capability of a GPU, the current one by default; None where PyTorch sees no GPU."""
    return torch.cuda.get_device_capability(index) if torch.cuda.is_available() else None


@functools.cache
def cuda_architectures() -> tuple[str, ...]:
    """The CUDA architectures in the loaded library, as CMake writes them; empty without CUDA kernels."""
    answer = ask("ifdd_cuda_architectures", ctypes.c_char_p)
    return tuple(filter(None, answer.decode().split(","))) if answer is not None else ()


# A constant of the process for each GPU, which every choice of a backend asks for.
@functools.cache
def without_code(index: int | None = None) -> str:
    """Why the library's CUDA kernels cannot run on a GPU, the current one by default; empty if they can.

    Also empty where there is no GPU to ask about, or the library does not tell what it was built for.
    """
    found, built = capability(index), cuda_architectures()
    if found is None or not built or any(has_code(architecture, found) for architecture in built):
        return ""
    version = ".".join(map(str, found))
    if found < OLDEST_GPU:
        oldest = ".".join(map(str, OLDEST_GPU))
        return f"its CUDA kernels need compute capability {oldest}, the GPU has {version}"
    return (
        f"the GPU has compute capability {version}, the native library was built for {', '.join(built)}:"
        f" build it with IFDD_CUDA_ARCHS={own_architecture(found)}"
    )


def own_architecture(capability: Capability) -> str:
    """The architecture to compile for exactly one kind of GPU, as CMake writes it."""
    major, minor = capability
    # From Hopper on, the matrix unit of a generation needs a target of its own ("a").
    return f"{major}{minor}a-real" if major >= 9 else f"{major}{minor}-real"


def has_code(architecture: str, capability: Capability) -> bool:
    """Whether code compiled for an architecture, as CMake writes it, runs on a GPU of a compute capability.

    Machine code ("80-real") runs on its generation from its own minor version on, PTX ("80-virtual", and
    "80", which is both) on every later GPU too; "90a" is for 9.0 alone, "100f" for its generation.
    Of other words of CMake ("all", "native") nothing is known here, so nothing is refused.
    """
    parts = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if parts is None:
        return True
    own = int(parts[1]), int(parts[2])
    if parts[3] == "a":
        return capability == own
    if parts[3] == "f" or parts[4] == "-real":
        return capability[0] == own[0] and capability >= own
    return capability >= own


def runtime_info() -> tuple[dict[str, Any], str]:
    """The build information in the compiled module ``_runtime``; without it nothing, and the reason."""
    path = _runtime_in(FOLDER)
    if path is None:
        others = ", ".join(sorted(other.name for other in FOLDER.glob("_runtime*.so"))) or "none"
        version = ".".join(map(str, sys.version_info[:2]))
        return {}, f"no _runtime module for Python {version} (there: {others}); run `{IN_PLACE}` with it"
    spec = importlib.util.spec_from_file_location(f"{__package__}._runtime", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return {}, f"{path} does not load: {' '.join(str(error).split())}"
    info: dict[str, Any] = module.build_info()
    return info, ""
