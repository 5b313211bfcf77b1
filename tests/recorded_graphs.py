"""CUDA graphs for tensors of the CPU: what ``torch.cuda.graph`` does, seen from Python.

While a graph is captured every op is noted with its arguments; a replay runs the same ops on the same memory.
So it has what makes graphs dangerous: numbers of the host are those of the capture, results lie where they
lay, and Python does not run again. Random numbers are drawn anew, as on a GPU. Unlike a GPU's, a capture
computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ifdd import graphs


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Kept as they are, for autograd would hold on to what it saved.
        with torch.no_grad():
            self.graph.ops.append((func, *pytree.tree_map(_alias, (args, kwargs, result))))
        return result


def _alias(value: Any) -> Any:
    with torch.utils._python_dispatch._disable_current_modes():
        return value.detach() if isinstance(value, Tensor) else value


class RecordedGraph:
    """In the place of ``torch.cuda.CUDAGraph``."""

    made: ClassVar[list[RecordedGraph]] = []

    def __init__(self) -> None:
        self.ops: list[Any] = []
        self.replays = 0
        self.made.append(self)

    def pool(self) -> str:
        return "pool"

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self.ops:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                # Views and results of ops in place are where they were.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Stream:
    def __init__(self, *_: Any) -> None:
        self.waited = 0

    def wait_stream(self, other: Any) -> None:
        self.waited += 1


@contextlib.contextmanager
def _graph(
    graph: RecordedGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    assert capture_error_mode == "thread_local", "a thread that pins memory would end the capture"
    assert not torch.is_autocast_cache_enabled(), "weights cast before the capture would stay as they are"
    with _Recorder(graph):
        yield


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Graphs of the CPU; the list of those that were made."""
    RecordedGraph.made = []
    monkeypatch.setattr(graphs, "_has_graphs", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", _graph)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return RecordedGraph.made
