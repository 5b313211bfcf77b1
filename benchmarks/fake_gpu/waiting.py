"""Finds where a program on a fake GPU makes the host wait for the device, or feeds a kernel from the host.

Both end the capture of a CUDA graph, or freeze a number in it; the first also leaves a GPU idle.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.fake_gpu.machine import python_of
from benchmarks.fake_gpu.watching import WatchedOps, tensors

#: Their results depend on values where an index is a mask, and only there.
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
_COPIES = frozenset({"_to_copy", "copy_"})
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class WaitsError(AssertionError):
    """An op that waits for the device or reads from the host."""


class NoWaiting(WatchedOps):
    """Raises :class:`WaitsError` at the first op that makes the host wait for the device, or that gives a
    kernel a tensor of the host; `seen` counts the ops that it looked at.

    Waiting are ops whose result on the host, or whose shape, depends on values (``item``, ``equal``,
    ``nonzero``, a mask as an index), copies to the host, and copies from it but those of pinned memory with
    ``non_blocking``. The launches of Triton kernels are looked at, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.seen = "", 0
        self._pinned: weakref.WeakSet[Tensor] = weakref.WeakSet()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Looks at what runs inside."""
        with self:
            yield

    def mark(self, name: str) -> None:
        """Nothing: there is no memory to note."""

    def before(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Looks at a call of an op of PyTorch."""
        why = _before(func, name, args, kwargs)
        if why:
            raise self._error(f"aten::{name} {why}")

    def after(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, note: Any
    ) -> None:
        """Looks at the result: copies are told by it."""
        self.seen += any(tensor.is_cuda for tensor in tensors(result))
        if name in ("pin_memory", "_pin_memory"):
            self._pinned.add(result)
        why = self._copied(name, args, kwargs, result)
        if why:
            raise self._error(f"aten::{name} {why}")

    def own(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        """An op of this library: its kernels' host code, or its definition in PyTorch, is looked at."""
        if _mixed(args):
            raise self._error(f"{name} takes a tensor of the host")
        code = python_of(name)
        if code is None:
            self.seen += 1
            return func(*args)
        launches, result = self.run(name, code, args)
        for launch in launches:
            self.seen += 1
            if not all(tensor.is_cuda for tensor in tensors([*launch.arguments.values()])):
                raise self._error(f"{name}: {launch.kernel.name} takes a tensor of the host")
        return result

    def _copied(self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> str:
        if name not in _COPIES:
            return ""
        source: Tensor = args[1] if name == "copy_" else args[0]
        if source.is_cuda == result.is_cuda:
            return ""
        free = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if source.is_cuda:
            return "" if free else "copies to the host and waits"
        return "" if free and source in self._pinned else "copies from unpinned memory of the host, or waits"

    def _error(self, what: str) -> WaitsError:
        return WaitsError(f"{self.phase}: {what}" if self.phase else what)


def _before(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
    """What is wrong with a call, before it: ops whose shape depends on values fail on fake tensors."""
    given = (args, kwargs)
    if not any(tensor.is_cuda for tensor in tensors(given)):
        return ""
    if name in _INDEXING:
        masks = [one for one in tensors(args[1]) if one.dtype in (torch.bool, torch.uint8)]
        if masks:
            return "indexes by a mask and waits"
    elif any(tag in func.tags for tag in _TAGS) or name in ("item", "is_nonzero", "_linalg_check_errors"):
        return "waits for the device"
    return "takes a tensor of the host" if name not in _COPIES and _mixed(given) else ""


def _mixed(values: Any) -> bool:
    return len({tensor.is_cuda for tensor in tensors(values)}) == 2
