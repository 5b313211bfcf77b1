"""The installation: versions, the native library, the kernels in use."""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import torch

from ifdd_kernels import _library, _products
from ifdd_kernels._version import __version__


def build_info() -> dict[str, Any]:
    """Describes the installation, for bug reports and for choosing a backend.

    Returns:
        A dict with: ``version`` (of ifdd-kernels), ``folder`` (of the imported package), ``python``,
        ``torch``, ``native`` (bool: the native kernels are loaded), ``reason`` (why not, and how to get
        them), ``path`` of the library, ``cpu_ops`` and ``cuda_ops`` (names with a native kernel),
        ``cuda_architectures`` (of the CUDA code, empty without). With a native build also
        ``instruction_set`` (in use; the environment variable ``IFDD_CPU_ISA`` lowers it), ``matrix_tiles``
        (``used``, ``emulated`` or ``off`` for attention in bfloat16, and why; ``IFDD_CPU_TILES`` turns them
        off or emulates them), ``products`` (how 16-bit matrices are multiplied and why;
        ``IFDD_CPU_PRODUCTS`` decides it), ``compiler``, ``flags``,
        ``build_type``, ``torch_build`` and ``torch_target`` (the torch built with and the oldest one
        supported), ``instruction_sets`` (compiled) and ``sanitize``; ``runtime_reason`` says why those from
        ``compiler`` on are missing, if they are: each Python that shares a checkout has a module with them of
        its own.
    """
    native, path = _library.load(), _library.path()
    info: dict[str, Any] = {
        "version": __version__,
        "folder": str(_library.FOLDER),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native,
        "reason": _library.failure(),
        "path": str(path) if path is not None else None,
        "cpu_ops": sorted(_library.native_ops("cpu")),
        "cuda_ops": sorted(_library.native_ops("cuda")),
        "cuda_architectures": _library.cuda_architectures(),
    }
    if not native:
        return info
    build, info["runtime_reason"] = _library.runtime_info()
    if (name := _library.ask("ifdd_instruction_set", ctypes.c_char_p)) is not None:
        info["instruction_set"] = name.decode()
        if (tiles := _library.ask("ifdd_matrix_tiles", ctypes.c_char_p)) is not None:
            info["matrix_tiles"] = tiles.decode()
        info["products"] = _products.choices()
    return {**build, **info}
