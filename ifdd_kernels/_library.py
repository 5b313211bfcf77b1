"""Loads the native library and says what it is, or why it is not there."""

from __future__ import annotations

import functools
import importlib.util
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "ifdd"
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
    key = device.upper()
    prefix = f"{NAMESPACE}::"
    return frozenset(
        name.removeprefix(prefix)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix) and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
    )


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
        and ``cuda_ops`` (names with a native kernel). With a native build also ``compiler``, ``flags``,
        ``build_type``, ``torch_build`` and ``torch_target`` (the torch built with and the oldest one
        supported), ``instruction_sets`` (compiled), ``instruction_set`` (in use; the environment variable
        ``IFDD_CPU_ISA`` lowers it), ``fast_bfloat16`` (bool: the CPU has matrix tiles, its bfloat16
        products are left to PyTorch), ``cuda_architectures`` (empty without CUDA kernels) and ``sanitize``.
    """
    from ifdd_kernels import __version__  # not at the top: the package imports this module first

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
    }
    build = _runtime_info() if native else {}
    return {**build, **info}
