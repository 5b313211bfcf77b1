"""Overhead of calling an op: microseconds per call on the smallest inputs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.suite.ours import backends
from benchmarks.suite.runner import Session
from benchmarks.suite.timing import CLOCKS, summary
from ifdd_kernels.registry import REGISTRY, Maker

CALLS, ROUNDS = 100, 9


def measure(session: Session) -> None:
    """A row for each op and backend, and for one of PyTorch's own ops to compare with.

    Triton kernels run in their default configuration: tuning all of them takes longer than the rest.
    """
    with _untuned():
        _measure(session)


@contextmanager
def _untuned() -> Iterator[None]:
    before = os.environ.get("IFDD_TRITON_TUNE")
    os.environ["IFDD_TRITON_TUNE"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["IFDD_TRITON_TUNE"]
        else:
            os.environ["IFDD_TRITON_TUNE"] = before


def _measure(session: Session) -> None:
    clock = CLOCKS["wall" if session.device == "cuda" else session.clock]
    x = torch.randn(8, device=session.device)
    functions: dict[tuple[str, str], Callable[[], object]] = {("relu", "aten"): lambda: torch.relu(x)}
    for op, entry in REGISTRY.items():
        if entry.operator is None:
            continue
        sample = min(entry.samples(Maker(torch.float32, session.device)), key=_size)
        for backend in backends(op, session.device):
            functions[op, backend] = functools.partial(entry.operator, backend, *sample.args)
    for (op, backend), function in functions.items():
        item = f"overhead of {op}, {backend}"
        if item in session.journal.finished():
            continue
        if session.left < 0:
            session.left_out += 1
            continue
        session.journal.start(item, limit_s=session.limit_s)
        for _ in range(3):
            function()
        times = summary([clock(function, CALLS) for _ in range(ROUNDS)])
        session.journal.finish(item)
        session.measured += 1
        session.writer.write(
            "overhead", case=op, contender=backend, microseconds=times.median * 1e6, spread=times.spread
        )


def _size(sample: object) -> tuple[bool, int]:
    """Small first, empty batches last."""
    tensors = [arg for arg in sample.args if isinstance(arg, Tensor)]  # type: ignore[attr-defined]
    count = sum(t.numel() for t in tensors)
    return tensors[0].numel() == 0, count
