"""Records every call of an op with its backend, shapes and dtypes, on request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ifdd_kernels import _library
from ifdd_kernels._schema import NAMESPACE

_SUFFIXES = ("reference", "triton")


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        op: the name of the op, without ``_backward``.
        backend: what ran, as :mod:`ifdd_kernels.backends` names it; or the function of PyTorch that an op
            consists of (``"F.linear"``).
        backward: whether it is the op's backward op.
        device: type of the device, e.g. ``"cpu"``.
        shapes: sizes of the tensors among the arguments, in the order of the schema.
        dtypes: their dtypes.
    """

    op: str
    backend: str
    backward: bool
    device: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    def __str__(self) -> str:
        name = f"{self.op}{' (backward)' if self.backward else ''}"
        dtypes = ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in self.dtypes))
        shapes = " ".join(f"({', '.join(map(str, shape))})" for shape in self.shapes)
        return f"{name}  {self.backend}  {self.device}  {dtypes}  {shapes}"


class Recording(Sequence[Call]):
    """The calls in the order in which they ran. ``print`` shows them as a table, equal ones counted."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    @overload
    def __getitem__(self, place: int) -> Call: ...

    @overload
    def __getitem__(self, place: slice) -> list[Call]: ...

    def __getitem__(self, place: int | slice) -> Call | list[Call]:
        return self._calls[place]

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<Recording of {len(self)} calls>"

    def __str__(self) -> str:
        if not self._calls:
            return "no op ran"
        rows = [["calls", "op", "backend", "device", "dtypes", "shapes"]]
        rows += [[str(n), *str(call).split("  ")] for call, n in Counter(self._calls).items()]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]])
            for row in rows
        )


class _Recorder(TorchDispatchMode):
    """Sees ops where the dispatcher runs them: below autograd and autocast, backward included."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            given = (*args, *kwargs.values())
            name, backward, backend = _parts(func._schema.name.partition("::")[2])
            first = next((value.device.type for value in given if isinstance(value, Tensor)), "cpu")
            if not backend:
                whole = f"{name}_backward" if backward else name
                backend = "native" if whole in _library.native_ops(first) else "reference"
            self.recording._calls.append(_call(name, backend, backward, given))
        return func(*args, **kwargs)


class _Here(threading.local):
    """The recordings of this thread."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []


_here = _Here()
#: How many recordings there are in all threads; what is no op looks here before it notes anything.
active = 0
_lock = threading.Lock()


def note(op: str, backend: str, args: Sequence[Any]) -> None:
    """Records in this thread's recordings a call that is made of PyTorch's own functions."""
    for recording in _here.recordings:
        recording._calls.append(_call(op, backend, False, args))


@contextmanager
def record() -> Iterator[Recording]:
    """Records the calls of ops in this thread: ``with ifdd_kernels.record() as calls: ...; print(calls)``.

    Public functions, ``torch.ops.ifdd``, those inside modules and loaded TorchScript programs are seen, and
    backward ops that run inside (PyTorch runs those on a GPU in threads of its own; they count as this one).
    An op that is composed of others is seen as those. One that is PyTorch's own function is seen as that
    (``F.linear``, ``"sdpa"``) where the public function is called outside of compilers; its backward is
    PyTorch's and not seen. Nothing is paid where nothing is recorded.

    Ops in compiled functions are seen as well: inside of a recording PyTorch may run these uncompiled.
    """
    global active
    recording = Recording()
    with _lock:
        active += 1
    _here.recordings.append(recording)
    try:
        with _Recorder(recording):
            yield recording
    finally:
        _here.recordings[:] = [other for other in _here.recordings if other is not recording]
        with _lock:
            active -= 1


def _parts(name: str) -> tuple[str, bool, str]:
    """Op, whether it is a backward op, and the backend in the name of a registered op."""
    suffix = next((s for s in _SUFFIXES if name.endswith(f"_{s}")), "")
    name = name.removesuffix(f"_{suffix}") if suffix else name
    backward = name.endswith("_backward")
    return name.removesuffix("_backward"), backward, suffix


def _call(op: str, backend: str, backward: bool, args: Sequence[Any]) -> Call:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return Call(
        op,
        backend,
        backward,
        tensors[0].device.type if tensors else "cpu",
        tuple(tuple(map(int, tensor.shape)) for tensor in tensors),
        tuple(tensor.dtype for tensor in tensors),
    )
