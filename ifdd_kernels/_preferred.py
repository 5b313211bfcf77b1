"""One switch for the backend of everything that leaves it open."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal, get_args

from ifdd_kernels._operator import OPERATORS

Backend = Literal["auto", "native", "triton", "sdpa", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)
#: Ops that cuBLAS already does best on a GPU; no GPU kernel is shipped for them.
LIBRARY_OPS = frozenset({"linear"})
#: Ops whose GPU kernels are Triton's: there is none in CUDA C++, nor need one be asked for.
TRITON_OPS = frozenset({"gelu_linear", "max_pool_tokens"})
#: What ``"auto"`` means, in all threads. Compilers guard on it: another one compiles anew.
chosen = "auto"
_lock = threading.Lock()
#: What was switched on and has not ended, the last of which holds; an object once for each block it is in.
_switches: list[use_backend] = []


class use_backend:  # noqa: N801 - used as a function
    """Makes ``backend`` what ``"auto"`` means for every op, until it is set again or a ``with`` ends.

    ``ifdd_kernels.use_backend("reference")`` holds from there on; ``with use_backend("reference"):`` for a
    block, also in the backward pass of what ran in it. It holds in all threads. A call that names a backend
    itself, ``backend="native"``, runs on that. ``torch.ops.ifdd.<op>`` is the native op with the reference
    where there is no native kernel, and is not switched.

    Ops that were never written for a backend stay with ``"auto"``: ``"triton"`` leaves products to PyTorch
    (docs/triton.md), as ``"native"`` does on GPUs, where it leaves max-pooling and GELU to Triton too, and
    ``"sdpa"`` is ``pooled_attention`` alone.
    An op that was, and cannot run here, raises the error that it raises for ``backend=``.

    Args:
        backend: a name in :data:`ifdd_kernels.backends.BACKENDS`; ``"auto"`` ends it.

    Raises:
        ValueError: another name.
    """

    def __init__(self, backend: str) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"use_backend: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.backend, self._entered = backend, 0
        with _lock:
            # Of two that hold from there on the first never holds again.
            if len(_switches) > 1 and not _switches[-1]._entered and not _switches[-2]._entered:
                del _switches[-2]
            _switches.append(self)
            _choose()

    def __enter__(self) -> use_backend:
        with _lock:
            if not self._entered and self in _switches:
                _switches.remove(self)  # that of its making: the block is where it holds now
            self._entered += 1
            _switches.append(self)
            _choose()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Blocks of several threads end in any order: each takes its own entry away.
        with _lock:
            self._entered -= 1
            del _switches[len(_switches) - 1 - _switches[::-1].index(self)]
            _choose()

    def __repr__(self) -> str:
        return f"use_backend({self.backend!r})"


def _choose() -> None:
    global chosen
    chosen = _switches[-1].backend if _switches else "auto"


def meant(op: str, device: str) -> str:
    """The backend that ``"auto"`` means for an op on a type of device; ``"auto"`` where nobody chose one."""
    operator = OPERATORS[op]
    if chosen == "native":
        return "auto" if device == "cuda" and op in LIBRARY_OPS | TRITON_OPS else chosen
    if chosen == "triton":
        written = (operator, *(OPERATORS[part] for part in operator.parts))
        return chosen if any(chosen in each.backends for each in written) else "auto"
    if chosen == "sdpa":
        return chosen if chosen in operator.compositions else "auto"
    return chosen
