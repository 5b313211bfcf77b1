"""The Triton backend: one module an op, imported (and Triton with it) when the op first runs on it.

A kernel module has ``forward`` and, for a differentiable op, ``backward``: functions of the arguments of
the op's two schemas that allocate with PyTorch and launch :class:`ifdd_kernels.triton._runtime.Kernel`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels import _library
from ifdd_kernels._operator import Twin

HOW_TO_GET_IT = "CUDA builds of PyTorch for Linux bring Triton; elsewhere `pip install triton`"
OLDEST_DEVICE = (8, 0)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton was asked to interpret kernels on the CPU; read before the first kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def refusal(device: str, dtype: torch.dtype | None = None, index: int | None = None) -> str:
    """Why Triton kernels cannot run on tensors of a device type and dtype; empty if they can.

    ``index``: which of several GPUs, the current one by default.
    """
    if not _installed():
        return f"Triton is not installed: {HOW_TO_GET_IT}"
    if dtype == torch.float64:
        return "Triton kernels take float16, bfloat16 and float32, the input is float64"
    if interpreted() and device in ("cpu", "cuda"):
        return ""
    if device != "cuda":
        return (
            f"Triton kernels need a CUDA device, the input is on {device}; with TRITON_INTERPRET=1 in the"
            " environment when Python starts, Triton's interpreter runs them on the CPU, slowly"
        )
    capability = _library.capability(index)
    if capability is not None and capability < OLDEST_DEVICE:
        found = ".".join(map(str, capability))
        return f"Triton kernels need compute capability 8.0, the device has {found}"
    return ""


def twin(op: str, traced: bool = True) -> Twin:
    """The Triton twin of an op, for ``Operator(twins={"triton": twin("..."), ...})``.

    Its functions import ``ifdd_kernels.triton.<op>`` at their first call. Compilers trace into them
    (:attr:`ifdd_kernels._operator.Twin.traced`), unless ``traced`` is off: for kernels that spill without a
    limit of their registers, which compilers that trace cannot pass on.
    """
    return Twin(_deferred(op, "forward"), _deferred(op, "backward"), traced=traced and not interpreted())


def _deferred(op: str, direction: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        first = next(arg for arg in args if isinstance(arg, Tensor))
        problem = refusal(first.device.type, first.dtype, first.device.index)
        if problem:
            raise RuntimeError(f"{op}: backend 'triton' cannot run: {problem}")
        return getattr(importlib.import_module(f"{__name__}.{op}"), direction)(*args)

    return call
