"""Captured modules, on graphs that are recorded on the CPU: no device has captured any yet."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ifdd import IFDD, IFDDConfig
from ifdd.graphs import capture
from ifdd.losses import IFDDLoss
from rank_program import TINY
from recorded_graphs import RecordedGraph, recorded_graphs

__all__ = ["recorded_graphs"]


class Result(NamedTuple):
    loss: Tensor
    seen: Tensor


class Small(nn.Module):
    """Has random numbers, statistics, a parameter that takes no part and a result without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.drop, self.idle = nn.Dropout(0.5), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Result:
        y = self.drop(self.norm(self.layer(x)))
        return Result(y.square().sum(), y.detach())


def _train(module: nn.Module, call: Any, steps: int, accumulate: int = 1) -> list[Tensor]:
    """Losses and weights of a loop with what a loop has: a rate that changes, clipping, a scaled loss."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    numbers, found = torch.Generator().manual_seed(1), []
    for step in range(steps):
        torch.manual_seed(100 + step)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        for _ in range(accumulate):
            loss = call(torch.rand(8, 4, generator=numbers)).loss
            (2 * loss).backward()
            found.append(loss.detach())
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return [*found, *(value.clone() for value in module.state_dict().values())]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_captured_training_takes_the_same_steps(
    recorded_graphs: list[RecordedGraph], accumulate: int
) -> None:
    torch.manual_seed(0)
    plain = Small()
    other = Small()
    other.load_state_dict(plain.state_dict())
    captured = capture(other, torch.zeros(8, 4))
    expected = _train(plain, plain, 4, accumulate)
    found = _train(other, captured, 4, accumulate)
    assert all(map(torch.equal, found, expected))
    assert [graph.replays for graph in recorded_graphs] == [4 * accumulate] * 2
    assert len({float(loss) for loss in found[: 4 * accumulate]}) == 4 * accumulate, "one and the same draw"


def test_a_capture_leaves_everything_as_it_was(recorded_graphs: list[RecordedGraph]) -> None:
    module = Small()
    before, draws = {name: v.clone() for name, v in module.state_dict().items()}, torch.get_rng_state()
    capture(module, torch.rand(8, 4, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_does_not_fit_runs_as_it_is(recorded_graphs: list[RecordedGraph]) -> None:
    module = Small()
    captured = capture(module, torch.zeros(8, 4))
    x = torch.rand(8, 4)
    assert captured.fits(x)
    assert not captured.fits(x[:5])
    assert not captured.fits(x.double())
    assert not captured.fits(x.requires_grad_())
    x = x.detach()
    with torch.no_grad():
        assert not captured.fits(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not captured.fits(x)
    module.eval()
    assert not captured.fits(x)
    assert torch.equal(captured(x[:5]).seen, module(x[:5]).seen)
    assert recorded_graphs[0].replays == 0


def test_results_stay_and_an_earlier_call_has_no_backward(recorded_graphs: list[RecordedGraph]) -> None:
    captured = capture(Small(), torch.zeros(8, 4))
    first = captured(torch.rand(8, 4))
    kept = first.seen.clone()
    second = captured(torch.rand(8, 4))
    assert torch.equal(first.seen, kept)
    assert not torch.equal(second.seen, kept)
    with pytest.raises(RuntimeError, match="backward of an earlier call"):
        first.loss.backward()


def test_backward_of_a_call_runs_once(recorded_graphs: list[RecordedGraph]) -> None:
    """A second one would read what the first has overwritten."""
    captured = capture(Small(), torch.zeros(8, 4))
    loss = captured(torch.rand(8, 4)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward of one call runs once; call again"):
        loss.backward()
    captured(torch.rand(8, 4)).loss.backward()


def test_a_capture_leaves_no_node_of_a_parameter(recorded_graphs: list[RecordedGraph]) -> None:
    """It would belong to the stream of the capture: a later graph of another stream would wait for that."""
    module, x = Small(), torch.zeros(8, 4)
    first, second = capture(module, x), capture(module, x)
    loss = second(x).loss
    with pytest.raises(ValueError, match="a result of an earlier call is alive"):
        capture(module, x)
    del loss
    assert first.differentiable == capture(module, x).differentiable == (True, False)


def test_evaluation_mode_has_gradients_where_they_are_recorded(recorded_graphs: list[RecordedGraph]) -> None:
    module, x = Small().eval(), torch.rand(8, 4)
    captured = capture(module, torch.zeros(8, 4))
    module(x).loss.backward()
    expected = module.layer.weight.grad
    module.zero_grad()
    captured(x).loss.backward()
    assert module.layer.weight.grad is not None
    assert torch.equal(module.layer.weight.grad, expected)


def test_modes_of_parts_and_frozen_parameters_count(recorded_graphs: list[RecordedGraph]) -> None:
    module, x = Small(), torch.zeros(8, 4)
    captured = capture(module, x)
    module.norm.eval()
    assert not captured.fits(x)
    module.norm.train()
    assert captured.fits(x)
    module.layer.weight.requires_grad_(False)
    assert not captured.fits(x)


class Sums(nn.Module):
    """The gradients of all three parameters are one tensor, that of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return (self.first + self.second + self.third) + x, None


def test_gradients_share_no_memory(recorded_graphs: list[RecordedGraph]) -> None:
    module, x = Sums(), torch.rand(3)
    captured = capture(module, x)
    for factor in (1.0, 2.0):
        (factor * captured(x)[0]).sum().backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert len({grad.data_ptr() for grad in grads}) == 3
    assert all(torch.equal(grad, torch.full((3,), 3.0)) for grad in grads)


def test_none_is_returned_and_what_is_no_tensor_runs_as_it_is(recorded_graphs: list[RecordedGraph]) -> None:
    module, x = Sums(), torch.rand(3)
    captured = capture(module, x)
    found, nothing = captured(x)
    assert torch.equal(found, module(x)[0])
    assert nothing is None
    assert torch.equal(captured(2.0)[0], torch.full((3,), 5.0))
    module = Sums()
    module.forward = lambda x: (x, 3)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ValueError, match=r"must return tensors or None, got int$"):
        capture(module, x)


def test_a_capture_that_fails_leaves_everything_as_it_was(recorded_graphs: list[RecordedGraph]) -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 5))
    with pytest.raises(RuntimeError):
        capture(module, torch.rand(8, 4))
    assert torch.equal(module[0].running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_threads_take_turns(recorded_graphs: list[RecordedGraph]) -> None:
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    with torch.no_grad():
        captured = capture(module, torch.zeros(3, 4))

    @torch.no_grad()
    def right(seed: int) -> bool:
        x = torch.full((3, 4), float(seed))
        return torch.equal(captured(x), module(x))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            assert all(threads.map(right, range(100)))
    finally:
        sys.setswitchinterval(before)


class Losses(nn.Module):
    def __init__(self, network: IFDD) -> None:
        super().__init__()
        self.network, self.criterion = network, IFDDLoss()

    def forward(self, clips: Tensor, targets: Tensor) -> Any:
        return self.criterion(self.network(clips), targets)


def test_the_network_captured_has_the_same_loss_and_gradients(recorded_graphs: list[RecordedGraph]) -> None:
    """In 16 bits, with stochastic depth and dropout."""
    module = Losses(IFDD(IFDDConfig.from_dict({**TINY, "num_classes": 3})))
    size = module.network.config.image_size
    clips = torch.rand(2, 3, module.network.config.clip_frames, size, size)
    targets = torch.softmax(torch.rand(2, 3), 1)
    with torch.autocast("cpu", torch.bfloat16):
        captured = capture(module, torch.zeros_like(clips), torch.zeros_like(targets), warmup=1)
    found = []
    for call in (module, captured):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(clips, targets).total
        loss.backward()
        found.append([loss, *(p.grad for p in module.parameters() if p.grad is not None)])
        module.zero_grad()
    assert len(found[0]) == len(found[1]) > 50
    assert all(map(torch.equal, *found))


def test_inference_is_captured_without_backward(recorded_graphs: list[RecordedGraph]) -> None:
    module = nn.Linear(4, 2).eval()
    with torch.inference_mode():
        captured = capture(module, torch.zeros(3, 4))
        x = torch.rand(3, 4)
        assert torch.equal(captured(x), module(x))
    assert [graph.replays for graph in recorded_graphs] == [1, 0]
    assert not recorded_graphs[1].ops


def test_what_cannot_be_captured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(4, 2), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"^capture: CUDA graphs need a GPU; the examples are on cpu$"):
        capture(layer, x)
    with pytest.raises(ValueError, match="examples must be tensors on one GPU, got none"):
        capture(layer)
    with pytest.raises(ValueError, match="examples must be tensors on one GPU, got cpu, int"):
        capture(layer, x, 3)  # type: ignore[arg-type]
    monkeypatch.setattr("ifdd.graphs._has_graphs", lambda device: True)
    with pytest.raises(ValueError, match="an example requires a gradient"):
        capture(layer, x.clone().requires_grad_())
    hook = layer.weight.register_hook(lambda _: None)
    with pytest.raises(ValueError, match="parameter weight has hooks, which a replay would apply twice"):
        capture(layer, x)
    hook.remove()
    outer = nn.Sequential(layer)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="0 has hooks, which a replay would not call"):
        capture(outer, x)
