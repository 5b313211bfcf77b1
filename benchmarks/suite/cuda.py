"""How a step runs on a GPU: launched call by call, and as a replayed CUDA graph, over rotating inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from benchmarks.rivals.contender import Inputs, Step, prepare
from benchmarks.suite.timing import Call

MOST_COPIES = 16
WARM_UP = 3


def copies_for(bytes_moved: int, cache_bytes: int) -> int:
    """Sets of inputs that together are twice the second-level cache: then each call finds it cold."""
    return max(1, min(MOST_COPIES, -(-2 * cache_bytes // max(bytes_moved, 1))))


def rotation(calls: Sequence[Call]) -> Call:
    """One call after the other, over and over."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def modes(
    passed: dict[str, Step],
    inputs: Inputs,
    training: bool,
    bytes_moved: int,
    wanted: Sequence[str],
    begin: Callable[[str], None],
    refused: Callable[[str, str], None],
) -> dict[str, dict[str, Call]]:
    """Calls of every contender in the modes that are wanted.

    Args:
        passed: contenders by name; what no graph can hold is called launch by launch where graphs are wanted.
        inputs: shared by all.
        training: whether gradients are taken.
        bytes_moved: of one call, which tells how many sets of inputs find the cache cold.
        wanted: "graph", "eager" or both.
        begin: told the name of each contender before it is captured.
        refused: told the name and the reason of one whose capture failed.
    """
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    copies = copies_for(bytes_moved, cache)
    eager: dict[str, Call] = {}
    graphs: dict[str, Call] = {}
    sets = [inputs, *(inputs.copy() for _ in range(copies - 1))]
    for name, step in passed.items():
        steps = [step, *(prepare(step.contender, other, training, step.bound) for other in sets[1:])]
        capturable = step.contender.capturable
        if "eager" in wanted or not capturable:
            eager[name] = rotation(steps)
        if "graph" in wanted and capturable:
            begin(name)
            try:
                graphs[name] = Replay(steps)
                graphs[name]()
                torch.cuda.synchronize()
            except Exception as error:  # of CUDA, Triton or the op itself: the others still have their times
                graphs.pop(name, None)
                refused(name, f"not captured: {type(error).__name__}: {error}")
    return {"graph": graphs, "eager": eager}


class Replay:
    """A CUDA graph of several steps, launched by one call: a launch takes the host longer than a small op."""

    def __init__(self, steps: Sequence[Callable[[], object]]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in steps:
                for _ in range(WARM_UP):
                    step()
        torch.cuda.current_stream().wait_stream(stream)
        self.steps = len(steps)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            # The results stay in the graph's memory as long as the graph does.
            self._kept = [step() for step in steps]

    def __call__(self) -> None:
        self._graph.replay()
