"""Which kernels an op runs on, and why not on others.

- ``"native"``: the compiled C++ (CPU) or CUDA C++ kernels of the native library.
- ``"triton"``: the Triton kernels.
- ``"reference"``: the definition in plain PyTorch (:mod:`ifdd_kernels.reference`), everywhere.
- ``"auto"``: the fastest of these for the device of the input.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ifdd_kernels import _library, _measured, triton
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


def can_run(op: str, backend: str, *tensors: Tensor | None, raise_error: bool = False) -> Support:
    """Whether ``backend`` can run ``op``, on the device of ``tensors`` (the CPU without any).

    Args:
        op: name of an op, e.g. ``"split_frames"``.
        backend: one of :data:`BACKENDS`.
        tensors: inputs of the op in the order of its schema, None for one that is not given; the first
            one decides the device, and more of them tell a limit on shapes.
        raise_error: raise the refusal instead of returning it.

    Raises:
        ValueError: unknown op or backend.
        RuntimeError: the backend cannot run the op and ``raise_error`` is set.
    """
    _check_names(op, backend)
    first = tensors[0] if tensors else None
    device, dtype = (first.device.type, first.dtype) if first is not None else ("cpu", None)
    limit = _limit(op, tensors)
    refusal = _refusal(op, backend, device, dtype, limit)
    if raise_error and refusal:
        raise RuntimeError(refusal)
    return _support(op, backend, device, dtype, limit)


def _limit(op: str, args: Sequence[Any]) -> str:
    """Why the native CUDA kernels of an op do not take arguments of these shapes, if they do not."""
    limit = OPERATORS[op].cuda_limit
    return limit(*args) if limit is not None and args and args[0].device.type == "cuda" else ""


def _support(op: str, backend: str, device: str, dtype: torch.dtype | None, limit: str) -> Support:
    if backend == "reference":
        return Support(True, "plain PyTorch runs on every device")
    if backend == "auto":
        chosen, reason = _fastest(op, device, dtype, limit)
        return Support(True, f"chooses {chosen}: {reason}")
    if backend == "triton":
        if "triton" not in OPERATORS[op].twins:
            return Support(False, "no Triton kernels of this op exist yet")
        problem = triton.refusal(device, dtype)
        return Support(not problem, problem or "Triton kernels exist")
    if not _library.loaded():
        return Support(False, f"the native library is not loaded: {_library.failure()}")
    if op not in _library.native_ops(device):
        return Support(False, f"the native library has no {device} kernel of this op yet")
    if device == "cuda" and dtype == torch.float64:
        return Support(False, "CUDA kernels take float16, bfloat16 and float32, the input is float64")
    if limit:
        return Support(False, limit)
    return Support(True, f"the native library has a {device} kernel")


@functools.cache
def _fastest(op: str, device: str, dtype: torch.dtype | None, limit: str = "") -> tuple[str, str]:
    """The backend that ``"auto"`` means, and why.

    On a GPU the measured one where the table has this device. Triton never runs on a CPU by itself: there
    it would be interpreted.
    """
    native = _support(op, "native", device, dtype, limit)
    if device != "cuda":
        return ("native" if native.ok else "reference"), native.reason
    if torch.cuda.is_available():
        measured = _measured.FASTEST.get(torch.cuda.get_device_name(), {}).get(op)
        if measured is not None and _support(op, measured, device, dtype, limit).ok:
            return measured, "measured as the fastest on this device"
    if native.ok:
        return "native", f"{native.reason}, and nothing else was measured faster on this device"
    written = _support(op, "triton", device, dtype, limit)
    chosen = "triton" if written.ok else "reference"
    return chosen, f"{written.reason}; {native.reason}"


def select(op: str, backend: str, *args: Any) -> str:
    """The twin of ``op`` (see :class:`ifdd_kernels._operator.Operator`) that ``backend`` means for arguments.

    ``torch.ops.ifdd.<op>`` itself runs the native kernel where there is one and the reference elsewhere:
    on a CPU that is what ``"auto"`` means, while asking for ``"native"`` refuses to fall back.
    """
    x: Tensor = args[0]
    if backend == "auto":
        return "" if x.device.type != "cuda" else _fastest_twin(op, x.device.type, x.dtype, _limit(op, args))
    refusal = _refusal(op, backend, x.device.type, x.dtype, _limit(op, args))
    if refusal:
        raise RuntimeError(refusal)
    return "" if backend == "native" else backend


# A constant of the process, and it asks the dispatcher: compilers take the answer instead of tracing it.
@torch.compiler.assume_constant_result
def _fastest_twin(op: str, device: str, dtype: torch.dtype, limit: str) -> str:
    chosen = _fastest(op, device, dtype, limit)[0]
    return "" if chosen == "native" else chosen


@torch.compiler.assume_constant_result
def _refusal(op: str, backend: str, device: str, dtype: torch.dtype | None, limit: str) -> str:
    """Why a backend cannot run an op, as a whole message; empty if it can."""
    _check_names(op, backend)
    support = _support(op, backend, device, dtype, limit)
    return "" if support.ok else f"{op}: backend {backend!r} cannot run: {support.reason}"


def _check_names(op: str, backend: str) -> None:
    if op not in OPERATORS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(sorted(OPERATORS))}")
    if backend not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")


def run(operator: Operator, backend: str, *args: Any) -> Any:
    """Calls the member of an operator's family that ``backend`` means for its first argument."""
    return operator(select(operator.name, backend, *args), *args)
