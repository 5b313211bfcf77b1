"""Which kernels an op runs on, and why not on others.

- ``"native"``: the compiled C++ (CPU) or CUDA C++ kernels of the native library.
- ``"triton"``: the Triton kernels.
- ``"reference"``: the definition in plain PyTorch (:mod:`ifdd_kernels.reference`), everywhere.
- ``"auto"``: the fastest of these for the device of the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ifdd_kernels import _library
from ifdd_kernels._operator import OPERATORS, Operator

Backend = Literal["auto", "native", "triton", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)


@dataclass(frozen=True)
class Support:
    """Whether a backend can run an op, and the reason in one sentence."""

    ok: bool
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def can_run(op: str, backend: str, *tensors: Tensor, raise_error: bool = False) -> Support:
    """Whether ``backend`` can run ``op``, on the device of ``tensors`` (the CPU without any).

    Args:
        op: name of an op, e.g. ``"split_frames"``.
        backend: one of :data:`BACKENDS`.
        tensors: inputs of the op; the first one decides the device.
        raise_error: raise the refusal instead of returning it.

    Raises:
        ValueError: unknown op or backend.
        RuntimeError: the backend cannot run the op and ``raise_error`` is set.
    """
    _check_names(op, backend)
    device = tensors[0].device.type if tensors else "cpu"
    refusal = _refusal(op, backend, device)
    if raise_error and refusal:
        raise RuntimeError(refusal)
    return _support(op, backend, device)


def _support(op: str, backend: str, device: str) -> Support:
    if backend == "reference":
        return Support(True, "plain PyTorch runs on every device")
    if backend == "auto":
        native = _support(op, "native", device)
        chosen = "native" if native.ok else "reference"
        return Support(True, f"chooses {chosen}: {native.reason}")
    if backend == "triton":
        if "triton" in OPERATORS[op].twins and device == "cuda":
            return Support(True, "Triton kernels exist")
        if "triton" in OPERATORS[op].twins:
            return Support(False, f"Triton kernels need a CUDA device, the input is on {device}")
        return Support(False, "no Triton kernels of this op exist yet")
    if not _library.loaded():
        return Support(False, f"the native library is not loaded: {_library.failure()}")
    if op not in _library.native_ops(device):
        return Support(False, f"the native library has no {device} kernel of this op yet")
    return Support(True, f"the native library has a {device} kernel")


def select(op: str, backend: str, x: Tensor) -> str:
    """The twin of ``op`` (see :class:`ifdd_kernels._operator.Operator`) that ``backend`` means for x.

    ``torch.ops.ifdd.<op>`` itself runs the native kernel where there is one and the reference elsewhere,
    so ``"auto"`` and ``"native"`` share it; asking for ``"native"`` refuses to fall back.
    """
    if backend == "auto":
        return ""
    refusal = _refusal(op, backend, x.device.type)
    if refusal:
        raise RuntimeError(refusal)
    return "" if backend == "native" else backend


# A constant of the process, and it asks the dispatcher: compilers take the answer instead of tracing it.
@torch.compiler.assume_constant_result
def _refusal(op: str, backend: str, device: str) -> str:
    """Why a backend cannot run an op, as a whole message; empty if it can."""
    _check_names(op, backend)
    support = _support(op, backend, device)
    return "" if support.ok else f"{op}: backend {backend!r} cannot run: {support.reason}"


def _check_names(op: str, backend: str) -> None:
    if op not in OPERATORS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(sorted(OPERATORS))}")
    if backend not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")


def run(operator: Operator, backend: str, *args: Any) -> Any:
    """Calls the member of an operator's family that ``backend`` means for its first argument."""
    return operator.overload(select(operator.name, backend, args[0]))(*args)
