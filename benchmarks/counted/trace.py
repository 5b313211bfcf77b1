"""Every launch of a program on a fake GPU: what it is, where in the network it belongs, what it moves."""

from __future__ import annotations

import bisect
import hashlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from benchmarks.counted import foreach
from benchmarks.counted.native import NATIVE
from benchmarks.fake_gpu.machine import python_of
from benchmarks.fake_gpu.watching import WatchedOps, tensors

KINDS = ("products", "attention", "our kernels", "everything else")
_ATTENTION = ("pooled_attention", "lifting_attention")
#: Ops of several kernels: a row sum, the gradients, and that of the queries in another dtype.
_SEVERAL = {
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 3,
}
_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})


@dataclass(frozen=True)
class Launch:
    """One op of PyTorch or one kernel of this library.

    ``launches`` is 1 but for ops on lists of tensors and CUDA C++ ops of several kernels.
    """

    phase: str
    part: str
    kind: str
    name: str
    launches: int
    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written


@dataclass
class Trace:
    """The calls that ran, in order, and the memory of their tensors."""

    launches: list[Launch] = field(default_factory=list)
    #: Bytes of tensors alive now, at most so far, and at marked moments.
    alive: int = 0
    peak: int = 0
    marks: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Of all launches with their sizes: equal where the same was counted."""
        text = "\n".join(repr(astuple(launch)) for launch in self.launches)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Counter(WatchedOps):
    """Notes every launch below it, of ops on CUDA tensors only.

    The part of the network is the innermost module that runs; in backward, that of the forward op whose
    gradient it is, by autograd's sequence numbers, as PyTorch's profiler links the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.phase = ""
        self._tracker = ModuleTracker()
        self._numbers: list[int] = []
        self._parts: list[str] = []
        self._known: set[int] = set()
        #: The kind of launches of the op of this library that runs, where it decides, and its name.
        self._op: tuple[str | None, str] = (None, "")

    @contextmanager
    def running(self) -> Iterator[Trace]:
        """Counts what runs inside."""
        with self._tracker, self:
            yield self.trace

    def mark(self, name: str) -> None:
        """Notes the memory in use."""
        self.trace.marks[name] = self.trace.alive

    def before(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The part of the network that calls an op of PyTorch."""
        return self._part()

    def after(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, note: Any
    ) -> None:
        """Notes the memory and the launch."""
        self._keep(result, (args, kwargs))
        self._library(func, name, note, args, kwargs, result)

    def _part(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None and self._numbers:
            number = node._sequence_nr()
            # Gradients of parameters are added up by nodes that no forward op made.
            if number > self._numbers[-1]:
                return "gradients of parameters"
            return self._parts[max(bisect.bisect_right(self._numbers, number) - 1, 0)]
        names = [parent for parent in self._tracker.parents if parent != "Global"]
        part = max(names, key=len).partition(".")[2] or "network" if names else self.phase
        number = torch._C._autograd._get_sequence_nr() - 1
        if torch.is_grad_enabled() and (not self._numbers or number > self._numbers[-1]):
            self._numbers.append(number)
            self._parts.append(part)
        return part

    def _note(
        self, part: str, kind: str, name: str, launches: int, moved: tuple[int, int], flops: int
    ) -> None:
        launch = Launch(self.phase, part, kind, name, launches, *moved, flops)
        self.trace.launches.append(launch)

    def own(self, func: Any, name: str, args: tuple[Any, ...]) -> Any:
        """An op of this library: the host code of its kernels runs, or its definition in PyTorch."""
        part = self._part()
        family = name.removesuffix("_triton").removesuffix("_reference").removesuffix("_backward")
        kind = "attention" if family in _ATTENTION else "our kernels"
        code = python_of(name)
        flops = int(flop_registry[func._overloadpacket](*args))
        if code is None:
            result = func(*args)
            self._keep(result, args)
            native, scratch = NATIVE[name], NATIVE[name].scratch(args)
            moved = (_bytes(args) + scratch, _bytes(result) + scratch)
            self._note(part, kind, name, native.started(args), moved, flops)
            return result
        outer, self._op = self._op, (kind if name.endswith("_triton") else None, name)
        before = len(self.trace.launches)
        try:
            launches, result = self.run(name, code, args)
        finally:
            self._op = outer
        # What its kernels compute is what is left beside PyTorch's products.
        flops = max(flops - sum(launch.flops for launch in self.trace.launches[before:]), 0)
        for place, launch in enumerate(launches):
            # Which of a kernel's tensors are read and which are written is not known: each counts once.
            moved = (_bytes([*launch.arguments.values()]), 0)
            self._note(part, kind, f"{name}: {launch.kernel.name}", 1, moved, 0 if place else flops)
        return result

    def _library(
        self, func: Any, name: str, part: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """An op of PyTorch."""
        outputs = [t for t in tensors(result) if t.is_cuda and t.numel()]
        inputs = [t for t in tensors((args, kwargs)) if t.is_cuda]
        mutated = [
            value
            for argument, value in _named(func, args, kwargs)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        written = [t for t in tensors(mutated) if t.is_cuda and t.numel()]
        if not outputs and not written:
            return
        storages = {_storage(t) for t in inputs}
        if not written and all(_storage(t) in storages for t in outputs):
            return  # a view
        if name.startswith(("empty", "new_empty")):
            return
        read = [t for t in inputs if not any(t is w for w in written)]
        if name.endswith("_like") or name.startswith("new_"):
            read = []  # the shape alone
        # A copy or a fill does not look at what it overwrites.
        if written and name not in ("copy_", "zero_", "fill_", "_foreach_copy_", "_foreach_zero_"):
            read += written
        fresh = [t for t in outputs if _storage(t) not in storages]
        formula = flop_registry.get(func._overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
        kind = "products" if name in _PRODUCTS else "everything else"
        if "scaled_dot_product" in name or "flash_attention" in name:
            kind = "attention"
        within, op = self._op
        started = foreach.launches(name, args) if foreach.is_on_lists(name) else _SEVERAL.get(name, 1)
        moved = (_bytes(read), _bytes([*written, *fresh]))
        kind = kind if kind == "products" else within or kind
        self._note(part, kind, f"{op}: {name}" if op else name, started, moved, flops)

    def _keep(self, result: Any, given: Any) -> None:
        """Follows the memory of new tensors until they are gone."""
        old = {_storage(tensor) for tensor in tensors(given)}
        for tensor in tensors(result):
            key, size = _storage(tensor), tensor.untyped_storage().nbytes()
            if not tensor.is_cuda or key in old or key in self._known:
                continue
            self._known.add(key)
            self.trace.alive += size
            self.trace.peak = max(self.trace.peak, self.trace.alive)
            weakref.finalize(tensor.untyped_storage(), self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.trace.alive -= size


def _named(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(values: Any) -> int:
    """Bytes of distinct tensors, each element of memory once: what is expanded is one."""
    seen: dict[tuple[int, int, tuple[int, ...], tuple[int, ...]], int] = {}
    for tensor in tensors(values):
        if not tensor.is_cuda:
            continue
        sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
        elements = 0 if not tensor.numel() else _product(sizes)
        key = (_storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
        seen[key] = elements * tensor.element_size()
    return sum(seen.values())


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
