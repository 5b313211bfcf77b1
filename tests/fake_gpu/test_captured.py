"""The ops of a captured backward on a fake GPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.fake_gpu.machine import fake_gpu
from fake_gpu.marks import CPU_BUILD
from ifdd import IFDD, IFDDConfig, graphs
from ifdd.losses import IFDDLoss, WithLoss
from rank_program import TINY
from recorded_graphs import RecordedGraph, _Recorder, recorded_graphs

__all__ = ["recorded_graphs"]

pytestmark = CPU_BUILD


class Island(nn.Module):
    """A product in 32 bits among those of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.outside, self.inside = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outside(x)
        with torch.autocast("cuda", enabled=False):
            return self.inside(y.float()).square().sum()


def _ops(graph: RecordedGraph) -> Counter[str]:
    return Counter(str(func) for func, *_ in graph.ops)


def _both(module: nn.Module, *inputs: Tensor) -> list[Counter[str]]:
    """Ops of the eager and of the captured backward; forward is under autocast, as in a training."""
    parameters = tuple(module.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        captured = graphs.capture(module, *inputs, warmup=1)
        results = [one for one in captured._results(module(*inputs))[0] if one.requires_grad]
    eager = RecordedGraph()
    with _Recorder(eager):
        grads = [torch.ones_like(one) for one in results]
        eager.ops.clear()
        torch.autograd.grad(results, parameters, grads, allow_unused=True)
    return [_ops(eager), _ops(RecordedGraph.made[1])]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch, recorded_graphs: list[RecordedGraph]) -> None:
    """A device that is not there has no generator whose state could be kept, and the engine no thread for it,
    which leaving inference mode asks for.
    """
    monkeypatch.setattr(graphs, "_unchanged", lambda *_: torch.autograd.set_multithreading_enabled(False))


def test_a_captured_backward_has_the_ops_of_an_eager_one() -> None:
    with fake_gpu(), torch.device("cuda"):
        eager, captured = _both(Island(), torch.empty(3, 4))
    assert captured == eager
    assert captured["aten.mm.default"] == 3


@pytest.mark.nightly
def test_so_has_that_of_the_network() -> None:
    with fake_gpu(), torch.device("cuda"):
        network = IFDD(IFDDConfig.from_dict({**TINY, "num_classes": 3}))
        size, frames = network.config.image_size, network.config.clip_frames
        step = WithLoss(network, IFDDLoss())
        eager, captured = _both(step, torch.empty(2, 3, frames, size, size), torch.empty(2, 3))
    assert captured == eager
    assert sum(captured.values()) > 500
