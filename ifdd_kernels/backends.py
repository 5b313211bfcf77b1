"""Which kernels an op runs on, and why not on others.

- ``"native"``: the compiled C++ (CPU) or CUDA C++ kernels of the native library.
- ``"triton"``: the Triton kernels.
- ``"sdpa"``: PyTorch's fused attention on heads with further columns, of ``pooled_attention`` alone
  (:mod:`ifdd_kernels.sdpa`).
- ``"reference"``: the definition in plain PyTorch (:mod:`ifdd_kernels.reference`), everywhere.
- ``"auto"``: on a CPU native, else the reference; on a GPU what was measured as the fastest on this device
  nearest to these sizes (:mod:`ifdd_kernels._measured`), else native, else Triton, else the reference.

:func:`ifdd_kernels.use_backend` chooses another one for every call that leaves it at ``"auto"``;
:func:`ifdd_kernels.record` lists what ran.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ifdd_kernels import _library, _measured, _preferred, triton
from ifdd_kernels._constant import constant_result
from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._preferred import BACKENDS as BACKENDS
from ifdd_kernels._preferred import LIBRARY_OPS as LIBRARY_OPS
from ifdd_kernels._preferred import Backend as Backend

__all__ = ["BACKENDS", "Support", "can_run"]

_LIBRARY = "PyTorch's library kernels run it on GPUs (docs/triton.md)"
_OPEN = "they have limits on sizes, and not all sizes of a call were given"
_CPU = torch.device("cpu")
#: Ops that decompose into ``linear`` and ``lifting_attention``, with their arguments.
STEPS: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Support:
    """Whether a backend can run an op; true or false like its `ok`."""

    #: Whether it can.
    ok: bool
    #: Why, in one sentence.
    reason: str

    def __bool__(self) -> bool:
        return self.ok


def can_run(op: str, backend: str, *args: Any, raise_error: bool = False) -> Support:
    """Whether ``backend`` can run ``op``, on the device of the tensors in ``args`` (the CPU without any).

    The answer holds for a call with these arguments if they are all of them. With fewer, or with shapes that
    the op would refuse (``torch.empty(0, device="cuda")`` asks about a device), it is about the device, the
    dtype and the limits that the given sizes exceed for certain: "yes" then means that there are kernels, and
    the reason says where they have limits on sizes that could not be looked at.

    Args:
        op: name of an op, e.g. ``"split_frames"``.
        backend: one of :data:`BACKENDS`.
        args: leading arguments of the op in the order of its schema, None for what is not given. The first
            tensor decides the device, the first argument the dtype; more of them tell a limit on sizes and
            which measurement is nearest.
        raise_error: raise the refusal instead of returning it.

    Returns:
        :class:`Support`.

    Raises:
        ValueError: unknown op or backend.
        RuntimeError: the backend cannot run the op and ``raise_error`` is set.
    """
    _check_names(op, backend)
    support = _step_support(op, backend, args) if op in STEPS else _op_support(op, backend, args)
    if raise_error and not support:
        raise RuntimeError(_message(op, backend, support))
    return support


def _op_support(op: str, backend: str, args: Sequence[Any]) -> Support:
    """:func:`can_run` for a registered op."""
    operator = OPERATORS[op]
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), _CPU)
    if backend == "auto" and (meant := _preferred.meant(op, device.type)) != "auto":
        support = _op_support(op, meant, args)
        return Support(support.ok, f"chooses {meant}, as use_backend says: {support.reason}")
    if backend == "auto" and operator.instead is not None and (instead := operator.instead(*args)):
        return Support(True, f"chooses {instead}")
    if composed(operator, device.type, backend):
        return _composed_support(operator, backend, device, args)
    return _answer(operator, backend, device, args)


def _step_support(op: str, backend: str, args: Sequence[Any]) -> Support:
    """The answer for a lifting step: ``backend`` is its attention's, its projections choose apart."""
    given = dict(zip(STEPS[op], args, strict=False))
    target, heads = given.get("target"), given.get("num_heads")
    query = target
    if isinstance(target, Tensor) and target.dim() == 3 and isinstance(heads, int) and heads > 0:
        query = target.unflatten(2, (heads, -1)) if target.shape[2] % heads == 0 else target
    attention = _op_support("lifting_attention", backend, () if query is None else (query, query, query))
    what = "composed of linear and lifting_attention"
    if not attention:
        return Support(False, f"{what}; lifting_attention: {attention.reason}")
    projections = _op_support("linear", "auto", (target, given.get("query_weight")))
    return Support(True, f"{what}; lifting_attention: {attention.reason}; linear: {projections.reason}")


def composed(operator: Operator, device: str, backend: str) -> bool:
    """Whether the public function calls the op's parts: off the CPU, in Triton, and under autocast."""
    return bool(operator.parts) and (
        device != "cpu"
        or "triton" in (backend, backend == "auto" and _preferred.chosen)
        or torch.is_autocast_enabled("cpu")
    )


def _answer(operator: Operator, backend: str, device: torch.device, args: Sequence[Any]) -> Support:
    """:func:`can_run` for an op with kernels of its own."""
    support, whole = _looked_at(operator, backend, device, args)
    return support if whole else Support(True, f"{support.reason}; {_OPEN}")


def _looked_at(
    operator: Operator, backend: str, device: torch.device, args: Sequence[Any]
) -> tuple[Support, bool]:
    """The answer, and whether it holds without limits on sizes that were not given."""
    situation = _situation(operator, device, args)
    support = _support(operator.name, backend, *situation)
    chosen = _fastest(operator.name, *situation)[0] if backend == "auto" else backend
    limited = device.type == "cuda" and chosen == "native" and operator.cuda_limit is not None
    return support, not support or not limited or _whole(operator, args)


def _whole(operator: Operator, args: Sequence[Any]) -> bool:
    """Whether these are all arguments of a call, and such that the op takes them."""
    wanted = operator.overload()._schema.arguments
    if len(args) != len(wanted):
        return False
    missing = (
        arg is None and not isinstance(argument.type, torch.OptionalType)
        for arg, argument in zip(args, wanted, strict=True)
    )
    if any(missing):
        return False
    try:
        operator.check(*args)
    except Exception:  # arguments of another kind may fail in any way
        return False
    return True


def _composed_support(operator: Operator, backend: str, device: torch.device, args: Sequence[Any]) -> Support:
    """The answer for an op that runs as its parts: that of each part, for what it shares with the op."""
    named = dict(zip(operator.signature.arguments, args, strict=False))
    if _whole(operator, args):  # then the parts' other arguments are results of the op
        meta = tuple(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args)
        named = dict(zip(operator.signature.arguments, meta, strict=True))
        named.update(zip(operator.signature.results, operator.fake(*meta), strict=True))
    answers: dict[str, Support] = {}
    whole = True
    for part in map(OPERATORS.__getitem__, operator.parts):
        shared = tuple(named.get(name) for name in part.signature.arguments)
        answers[part.name], certain = _looked_at(part, backend, device, shared)
        whole = whole and certain
    what = f"composed of {' and '.join(operator.parts)}"
    refused = next((name for name, support in answers.items() if not support), None)
    if refused is not None:
        return Support(False, f"{what}; {refused}: {answers[refused].reason}")
    reasons = list(dict.fromkeys(support.reason for support in answers.values()))
    if backend == "auto":
        chosen, _, first = zip(*(reason.partition(": ") for reason in reasons), strict=True)
        names = dict.fromkeys(name.removeprefix("chooses ") for name in chosen)
        what, reasons = f"chooses {' and '.join(names)}: {what}", list(dict.fromkeys(first))
        separator = "; "
    else:
        separator = ": "
    return Support(True, what + separator + "; ".join([*reasons, *([] if whole else [_OPEN])]))


class Situation(NamedTuple):
    """The key of a choice."""

    device: str = "cpu"
    #: Which of several GPUs.
    gpu: int | None = None
    dtype: torch.dtype | None = None
    #: Why the native CUDA kernels of the op do not take these shapes, if they do not.
    limit: str = ""
    #: What the table of measurements is keyed by; None where it has nothing to say.
    sizes: tuple[int, ...] | None = None
    training: bool = False


def _situation(operator: Operator, device: torch.device, args: Sequence[Any]) -> Situation:
    """Of an op's leading arguments, which need not be there."""
    if args and isinstance(args[0], Tensor):
        return (
            _on_gpu(operator, device.index, args)
            if device.type == "cuda"
            else Situation(device.type, None, args[0].dtype)
        )
    limit = _limit(operator.name, args) if device.type == "cuda" else ""
    return Situation(device.type, device.index, None, limit)


def _on_gpu(operator: Operator, gpu: int | None, args: Sequence[Any]) -> Situation:
    x, limit = args[0], _limit(operator.name, args)
    if not _is_measured(operator.name, gpu):
        return Situation("cuda", gpu, x.dtype, limit)
    try:
        # Compilers make a constant of a symbolic size here: another one may be another choice.
        sizes = tuple(index(size) for size in operator.sizes(*args))
    except (AttributeError, IndexError, TypeError):  # not all arguments that the sizes are read from
        sizes = None
    dtype, tensors = x.dtype, [arg for arg in args if isinstance(arg, Tensor)]
    if operator.casts_input and dtype != torch.float64 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
    training = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return Situation("cuda", gpu, dtype, limit, sizes, training)


def _limit(op: str, args: Sequence[Any]) -> str:
    """Why the native CUDA kernels of an op do not take arguments of these shapes, if they do not."""
    limit = OPERATORS[op].cuda_limit
    return limit(*args) if limit is not None and args else ""


def _support(
    op: str,
    backend: str,
    device: str,
    index: int | None,
    dtype: torch.dtype | None,
    limit: str = "",
    sizes: tuple[int, ...] | None = None,
    training: bool = False,
) -> Support:
    if backend == "reference":
        return Support(True, "plain PyTorch runs on every device")
    if backend == "auto":
        chosen, reason = _fastest(op, device, index, dtype, limit, sizes, training)
        return Support(True, f"chooses {chosen}: {reason}")
    if backend == "sdpa":
        if backend not in OPERATORS[op].compositions:
            return Support(False, "only pooled_attention can be written as PyTorch's fused attention")
        return Support(True, "PyTorch's fused attention runs on every device")
    if backend == "triton":
        if "triton" not in OPERATORS[op].backends:
            return Support(False, _without(op, "no Triton kernels of this op exist"))
        problem = triton.refusal(device, dtype, index)
        return Support(not problem, problem or "Triton kernels exist")
    if not _library.loaded():
        return Support(False, f"the native library is not loaded: {_library.failure()}")
    if op not in _library.native_ops(device):
        missing = f"the native library has no {device} kernel of this op"
        return Support(False, missing if device == "cpu" else _without(op, missing))
    if device == "cuda" and (no_code := _library.without_code(index)):
        return Support(False, no_code)
    if device == "cuda" and dtype == torch.float64:
        return Support(False, "CUDA kernels take float16, bfloat16 and float32, the input is float64")
    if limit:
        return Support(False, limit)
    return Support(True, f"the native library has a {device} kernel")


def _without(op: str, missing: str) -> str:
    return f"{missing}: {_LIBRARY}" if op in LIBRARY_OPS else missing


@constant_result
def _is_measured(op: str, index: int | None) -> bool:
    """Whether the table has this device and op: most calls have nothing to look up."""
    return bool(_entries(op, index))


@functools.cache
def _entries(op: str, index: int | None) -> Sequence[_measured.Entry]:
    if not torch.cuda.is_available():
        return ()
    return _measured.FASTEST.get(torch.cuda.get_device_name(index), {}).get(op, ())


@functools.cache
def _fastest(
    op: str,
    device: str,
    index: int | None,
    dtype: torch.dtype | None,
    limit: str = "",
    sizes: tuple[int, ...] | None = None,
    training: bool = False,
) -> tuple[str, str]:
    """The backend that ``"auto"`` means, and why.

    On a GPU the measured one where the table has this device and sizes near these. Triton never runs on a CPU
    by itself: there it would be interpreted.
    """
    native = _support(op, "native", device, index, dtype, limit)
    if device != "cuda":
        return ("native" if native.ok else "reference"), native.reason
    if sizes is not None and dtype is not None:
        entry = _measured.nearest(_entries(op, index), dtype, sizes, training)
        if entry is not None and _support(op, entry.backend, device, index, dtype, limit).ok:
            return entry.backend, f"measured as the fastest on this device at {entry}"
    if native.ok:
        return "native", f"{native.reason}, and nothing else was measured faster on this device at such sizes"
    written = _support(op, "triton", device, index, dtype, limit)
    chosen = "triton" if written.ok else "reference"
    reasons = dict.fromkeys((written.reason, native.reason))
    return chosen, "; ".join(reasons)


def select(op: str, backend: str, *args: Any) -> str:
    """The member of an op's family (see :class:`ifdd_kernels._operator.Operator`) that ``backend`` means.

    ``torch.ops.ifdd.<op>`` itself runs the native kernel where there is one and the reference elsewhere:
    on a CPU that is what ``"auto"`` means, while asking for ``"native"`` refuses to fall back.
    """
    x: Tensor = args[0]
    try:
        device, kind = x.device, x.device.type
    except AttributeError:
        OPERATORS[op].check(*args)
        raise
    if backend == "auto" and _preferred.chosen != "auto":
        backend = _preferred.meant(op, kind)
    if backend == "auto":
        if kind != "cuda":
            return "native"
        gpu = device.index
        # Nothing measured is the common case, on every call.
        if _is_measured(op, gpu):
            asked: tuple[Any, ...] = _on_gpu(OPERATORS[op], gpu, args)
        else:
            asked = ("cuda", gpu, x.dtype, _limit(op, args))
        chosen: str = _chosen(op, *asked)
        return chosen
    limit = _limit(op, args) if kind == "cuda" else ""
    refusal = _refusal(op, backend, kind, device.index, x.dtype, limit)
    if refusal:
        raise RuntimeError(refusal)
    return backend


# A constant of the process, and it asks the dispatcher: compilers take the answer instead of tracing it.
@constant_result
def _chosen(op: str, *situation: Any) -> str:
    return _fastest(op, *situation)[0]


@constant_result
def _refusal(
    op: str, backend: str, device: str, index: int | None, dtype: torch.dtype | None, limit: str
) -> str:
    """Why a backend cannot run an op, as a whole message; empty if it can."""
    _check_names(op, backend)
    support = _support(op, backend, device, index, dtype, limit)
    return "" if support.ok else _message(op, backend, support)


def _message(op: str, backend: str, support: Support) -> str:
    return f"{op}: backend {backend!r} cannot run: {support.reason}"


def _check_names(op: str, backend: str) -> None:
    if op not in OPERATORS and op not in STEPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(sorted({*OPERATORS, *STEPS}))}")
    if backend not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")


def run(operator: Operator, backend: str, *args: Any) -> Any:
    """Calls the member of an operator's family that ``backend`` means for its first argument."""
    return operator(select(operator.name, backend, *args), *args)
