"""Loads the native library and says what it is, or why it is not there."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifdd_kernels._version import __version__

NAMESPACE = "ifdd"
Capability = tuple[int, int]
#: What the CUDA sources need at least: asynchronous copies and products of bfloat16.
OLDEST_GPU: Capability = (8, 0)
HOW_TO_GET_IT = (
    "install a C++17 compiler, then run `pip install cmake ninja pybind11 setuptools` and, in a checkout,"
    " `IFDD_NATIVE=1 pip install --no-build-isolation .`"
)


@dataclass(frozen=True)
class _State:
    path: Path | None
    reason: str


_state: _State | None = None


def _find(name: str) -> Path | None:
    """The library ``name*.so`` beside this file."""
    return next(iter(sorted(Path(__file__).parent.glob(f"{name}*.so"))), None)


def load() -> bool:
    """Loads the native kernels once; returns whether they are loaded. Never raises.

    Without them the ops run on the reference; :func:`failure` has the reason.
    """
    global _state
    if _state is None:
        path = _find("_ops")
        if path is None:
            _state = _State(None, f"no _ops*.so in {Path(__file__).parent}; {HOW_TO_GET_IT}")
        else:
            try:
                torch.ops.load_library(str(path))
                _state = _State(path, "")
            except (OSError, RuntimeError) as error:
                reason = f"{path} does not load with torch {torch.__version__}: {error}; {HOW_TO_GET_IT}"
                _state = _State(None, reason)
    return _state.path is not None


def loaded() -> bool:
    """Whether the native kernels are loaded."""
    return load()


def failure() -> str:
    """Why the native kernels are not loaded and how to get them; empty if they are."""
    load()
    return _state.reason if _state is not None else ""


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
    """What the loaded library has CUDA code for, as CMake writes it; empty without CUDA kernels.

    The library itself is asked, for any Python can load it: the module ``_runtime`` belongs to one version.
    """
    if not load():
        return ()
    assert _state is not None
    tell = getattr(ctypes.CDLL(str(_state.path)), "ifdd_cuda_architectures", None)
    if tell is None:  # built from sources of before this function
        return ()
    tell.restype = ctypes.c_char_p
    return tuple(filter(None, tell().decode().split(",")))


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


def _runtime_info() -> dict[str, Any]:
    """What the compiled module ``_runtime`` tells of the build; empty without it."""
    path = _find("_runtime")
    if path is None:
        return {}
    spec = importlib.util.spec_from_file_location(f"{__package__}._runtime", path)
    if spec is None or spec.loader is None:
        return {}
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:  # built for another Python
        return {}
    info: dict[str, Any] = module.build_info()
    return info


def build_info() -> dict[str, Any]:
    """What is installed and what runs, for bug reports and for choosing a backend.

    Returns:
        A dict with: ``version`` (of ifdd-kernels), ``python``, ``torch``, ``native`` (bool: the native
        kernels are loaded), ``reason`` (why not, and how to get them), ``path`` of the library, ``cpu_ops``
        and ``cuda_ops`` (names with a native kernel), ``cuda_architectures`` (of the CUDA code,
        empty without). With a native build also ``compiler``, ``flags``,
        ``build_type``, ``torch_build`` and ``torch_target`` (the torch built with and the oldest one
        supported), ``instruction_sets`` (compiled), ``instruction_set`` (in use; the environment variable
        ``IFDD_CPU_ISA`` lowers it), ``fast_bfloat16`` (bool: the CPU has matrix tiles, its bfloat16
        products are left to PyTorch) and ``sanitize``.
    """
    native = load()
    assert _state is not None
    info: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native,
        "reason": _state.reason,
        "path": str(_state.path) if _state.path is not None else None,
        "cpu_ops": sorted(native_ops("cpu")),
        "cuda_ops": sorted(native_ops("cuda")),
        "cuda_architectures": cuda_architectures(),
    }
    build = _runtime_info() if native else {}
    return {**build, **info}
