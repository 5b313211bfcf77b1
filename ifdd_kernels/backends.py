"""Which kernels an op runs on, and why not on others.

- ``"native"``: the compiled C++ (CPU) or CUDA C++ kernels of the native library.
- ``"triton"``: the Triton kernels.
- ``"sdpa"``: PyTorch's fused attention on heads with further columns, of ``pooled_attention`` alone
  (:mod:`ifdd_kernels.augmented_attention`).
- ``"reference"``: the definition in plain PyTorch (:mod:`ifdd_kernels.reference`), everywhere.
- ``"auto"``: on a CPU native, else the reference; on a GPU what was measured as the fastest on this device
  nearest to these sizes (:mod:`ifdd_kernels._measured`), else native, else Triton, else the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ifdd_kernels import _library, _measured, triton
from ifdd_kernels._operator import OPERATORS, Operator

Backend = Literal["auto", "native", "triton", "sdpa", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)
#: Ops whose work is a library's product or pooling, and stays one on GPUs.
LIBRARY_OPS = frozenset({"gelu_linear", "linear", "max_pool_tokens"})
_LIBRARY = "PyTorch's library kernels run it on GPUs, by design (docs/triton.md)"


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
            one decides the device, and more of them tell a limit on shapes and which measurement is nearest.
        raise_error: raise the refusal instead of returning it.

    Raises:
        ValueError: unknown op or backend.
        RuntimeError: the backend cannot run the op and ``raise_error`` is set.
    """
    _check_names(op, backend)
    operator = OPERATORS[op]
    device = tensors[0].device.type if tensors and tensors[0] is not None else "cpu"
    if composed(operator, device, backend):
        support = _composed_support(operator, backend, tensors)
    else:
        support = _support(op, backend, *_situation(operator, tensors))
    if raise_error and not support:
        raise RuntimeError(_message(op, backend, support))
    return support


def composed(operator: Operator, device: str, backend: str) -> bool:
    """Whether the public function calls the op's parts: off the CPU, in Triton, and under autocast."""
    return bool(operator.parts) and (
        device != "cpu" or backend == "triton" or torch.is_autocast_enabled("cpu")
    )


def _composed_support(operator: Operator, backend: str, tensors: Sequence[Tensor | None]) -> Support:
    """The answer for an op that runs as its parts: that of each part, for the first tensor."""
    answers = {part: can_run(part, backend, *tensors[:1]) for part in operator.parts}
    what = f"composed of {' and '.join(operator.parts)}"
    refused = next((name for name, support in answers.items() if not support), None)
    if refused is not None:
        return Support(False, f"{what}; {refused}: {answers[refused].reason}")
    reasons = "; ".join(dict.fromkeys(support.reason for support in answers.values()))
    if backend != "auto":
        return Support(True, f"{what}: {reasons}")
    chosen = [support.reason.partition(":")[0].removeprefix("chooses ") for support in answers.values()]
    reasons = "; ".join(dict.fromkeys(support.reason.partition(": ")[2] for support in answers.values()))
    return Support(True, f"chooses {' and '.join(dict.fromkeys(chosen))}: {what}; {reasons}")


class Situation(NamedTuple):
    """What a choice depends on."""

    device: str = "cpu"
    dtype: torch.dtype | None = None
    #: Why the native CUDA kernels of the op do not take these shapes, if they do not.
    limit: str = ""
    #: What the table of measurements is keyed by; None where it has nothing to say.
    sizes: tuple[int, ...] | None = None
    training: bool = False


def _situation(operator: Operator, args: Sequence[Any]) -> Situation:
    """Of an op's leading arguments."""
    x = args[0] if args else None
    if x is None or x.device.type != "cuda":
        return Situation() if x is None else Situation(x.device.type, x.dtype)
    return _on_gpu(operator, args)


def _on_gpu(operator: Operator, args: Sequence[Any]) -> Situation:
    x, limit = args[0], _limit(operator.name, args)
    if not _is_measured(operator.name):
        return Situation("cuda", x.dtype, limit)
    try:
        # Compilers make a constant of a symbolic size here: another one may be another choice.
        sizes = tuple(index(size) for size in operator.sizes(*args))
    except TypeError:  # fewer arguments than the sizes are read from
        sizes = None
    dtype, tensors = x.dtype, [arg for arg in args if isinstance(arg, Tensor)]
    if 0 in operator.autocast and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return Situation("cuda", dtype, limit, sizes, training)


def _limit(op: str, args: Sequence[Any]) -> str:
    """Why the native CUDA kernels of an op do not take arguments of these shapes, if they do not."""
    limit = OPERATORS[op].cuda_limit
    return limit(*args) if limit is not None and args and args[0].device.type == "cuda" else ""


def _support(
    op: str,
    backend: str,
    device: str,
    dtype: torch.dtype | None,
    limit: str = "",
    sizes: tuple[int, ...] | None = None,
    training: bool = False,
) -> Support:
    if backend == "reference":
        return Support(True, "plain PyTorch runs on every device")
    if backend == "auto":
        chosen, reason = _fastest(op, device, dtype, limit, sizes, training)
        return Support(True, f"chooses {chosen}: {reason}")
    if backend == "sdpa":
        if backend not in OPERATORS[op].compositions:
            return Support(False, "only pooled_attention can be written as PyTorch's fused attention")
        return Support(True, "PyTorch's fused attention runs on every device")
    if backend == "triton":
        if "triton" not in OPERATORS[op].twins:
            return Support(False, _without(op, "no Triton kernels of this op exist"))
        problem = triton.refusal(device, dtype)
        return Support(not problem, problem or "Triton kernels exist")
    if not _library.loaded():
        return Support(False, f"the native library is not loaded: {_library.failure()}")
    if op not in _library.native_ops(device):
        missing = f"the native library has no {device} kernel of this op"
        return Support(False, missing if device == "cpu" else _without(op, missing))
    if device == "cuda" and dtype == torch.float64:
        return Support(False, "CUDA kernels take float16, bfloat16 and float32, the input is float64")
    if limit:
        return Support(False, limit)
    return Support(True, f"the native library has a {device} kernel")


def _without(op: str, missing: str) -> str:
    return f"{missing}: {_LIBRARY}" if op in LIBRARY_OPS else missing


@torch.compiler.assume_constant_result
def _is_measured(op: str) -> bool:
    """Whether the table has this device and op: most calls have nothing to look up."""
    return bool(_entries(op))


@functools.cache
def _entries(op: str) -> Sequence[_measured.Entry]:
    if not torch.cuda.is_available():
        return ()
    return _measured.FASTEST.get(torch.cuda.get_device_name(), {}).get(op, ())


@functools.cache
def _fastest(
    op: str,
    device: str,
    dtype: torch.dtype | None,
    limit: str = "",
    sizes: tuple[int, ...] | None = None,
    training: bool = False,
) -> tuple[str, str]:
    """The backend that ``"auto"`` means, and why.

    On a GPU the measured one where the table has this device and sizes near these. Triton never runs on a CPU
    by itself: there it would be interpreted.
    """
    native = _support(op, "native", device, dtype, limit)
    if device != "cuda":
        return ("native" if native.ok else "reference"), native.reason
    if sizes is not None and dtype is not None:
        entry = _measured.nearest(_entries(op), dtype, sizes, training)
        if entry is not None and _support(op, entry.backend, device, dtype, limit).ok:
            return entry.backend, f"measured as the fastest on this device at {entry}"
    if native.ok:
        return "native", f"{native.reason}, and nothing else was measured faster on this device at such sizes"
    written = _support(op, "triton", device, dtype, limit)
    chosen = "triton" if written.ok else "reference"
    reasons = dict.fromkeys((written.reason, native.reason))
    return chosen, "; ".join(reasons)


def select(op: str, backend: str, *args: Any) -> str:
    """The member of an op's family (see :class:`ifdd_kernels._operator.Operator`) that ``backend`` means.

    ``torch.ops.ifdd.<op>`` itself runs the native kernel where there is one and the reference elsewhere:
    on a CPU that is what ``"auto"`` means, while asking for ``"native"`` refuses to fall back.
    """
    x: Tensor = args[0]
    if backend == "auto":
        if x.device.type != "cuda":
            return ""
        # Nothing measured is the common case, on every call.
        asked = _on_gpu(OPERATORS[op], args) if _is_measured(op) else ("cuda", x.dtype, _limit(op, args))
        twin: str = _fastest_twin(op, *asked)
        return twin
    refusal = _refusal(op, backend, x.device.type, x.dtype, _limit(op, args))
    if refusal:
        raise RuntimeError(refusal)
    return "" if backend == "native" else backend


# A constant of the process, and it asks the dispatcher: compilers take the answer instead of tracing it.
@torch.compiler.assume_constant_result
def _fastest_twin(op: str, *situation: Any) -> str:
    chosen = _fastest(op, *situation)[0]
    return "" if chosen == "native" else chosen


@torch.compiler.assume_constant_result
def _refusal(op: str, backend: str, device: str, dtype: torch.dtype | None, limit: str) -> str:
    """Why a backend cannot run an op, as a whole message; empty if it can."""
    _check_names(op, backend)
    support = _support(op, backend, device, dtype, limit)
    return "" if support.ok else _message(op, backend, support)


def _message(op: str, backend: str, support: Support) -> str:
    return f"{op}: backend {backend!r} cannot run: {support.reason}"


def _check_names(op: str, backend: str) -> None:
    if op not in OPERATORS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(sorted(OPERATORS))}")
    if backend not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")


def run(operator: Operator, backend: str, *args: Any) -> Any:
    """Calls the member of an operator's family that ``backend`` means for its first argument."""
    return operator(select(operator.name, backend, *args), *args)
