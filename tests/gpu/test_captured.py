"""A training step and an inference of the network as CUDA graphs (:func:`ifdd.graphs.capture`).

On a GPU the step runs once more where PyTorch makes every wait of the host an error. Without one, graphs are
recorded on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from ifdd import IFDD
from ifdd.graphs import capture
from ifdd.losses import IFDDLoss, WithLoss
from ops.devices import NETWORKS, devices, parameter
from recorded_graphs import recorded_graphs

__all__ = ["recorded_graphs"]

#: As many as the step that is timed: its Triton kernels are compiled already.
BATCH = {"cuda": 16, "cpu": 1}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Named after the backend that runs most of it, by which the plan of a GPU visit chooses."""
    found = [parameter(device, name="native", nightly=True) for device in devices(metafunc.config)]
    metafunc.parametrize("device", found)


@pytest.fixture(autouse=True)
def _graphs(device: str, request: pytest.FixtureRequest) -> None:
    if device == "cpu":
        request.getfixturevalue("recorded_graphs")


@contextmanager
def _waiting_is_an_error(device: str) -> Iterator[None]:
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _inputs(network: IFDD, device: str) -> tuple[Tensor, Tensor]:
    config, batch = network.config, BATCH[device]
    shape = (batch, 3, config.clip_frames, config.image_size, config.image_size)
    targets = torch.rand(batch, config.num_classes, device=device).softmax(1)
    return torch.rand(shape, device=device), targets


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_training_step_is_captured(device: str) -> None:
    torch.manual_seed(0)
    network = IFDD(NETWORKS[device]).to(device)
    step = WithLoss(network, IFDDLoss())
    optimizer = torch.optim.AdamW(step.parameters(), lr=0.0, weight_decay=0.0, fused=device == "cuda" or None)
    inputs = _inputs(network, device)

    def run(module: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = module(*inputs).total
        loss.backward()
        nn.utils.clip_grad_norm_(step.parameters(), 1.0)
        grads = torch.cat([p.grad.flatten().clone() for p in step.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), grads

    run(step, 1)  # kernels are loaded and tuned, the optimiser has its state
    with _waiting_is_an_error(device):
        loss, grads = run(step, 1)
    with torch.autocast(device, torch.bfloat16):
        captured = capture(step, *inputs)
    with _waiting_is_an_error(device):
        first, again, other = run(captured, 1), run(captured, 1), run(captured, 2)
    assert torch.equal(first[0], loss)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    # Gradients of the max-pooled shortcut are added up in any order.
    assert _relative(first[1], grads) < 0.01
    assert _relative(again[1], grads) < 0.01


def test_a_network_is_captured_again(device: str) -> None:
    """While the first graphs live, and after a backward of theirs."""
    torch.manual_seed(0)
    network = IFDD(NETWORKS[device]).to(device)
    step = WithLoss(network, IFDDLoss())
    inputs = _inputs(network, device)

    def run(module: nn.Module) -> Tensor:
        torch.manual_seed(1)
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = module(*inputs).total
        loss.backward()
        step.zero_grad()
        return loss.detach()

    found = []
    with torch.autocast(device, torch.bfloat16):
        first = capture(step, *inputs)
    found.append(run(first))
    with torch.autocast(device, torch.bfloat16):
        second = capture(step, *inputs)
    found += [run(second), run(first), run(step)]
    assert all(torch.equal(one, found[0]) for one in found)


def test_an_inference_is_captured(device: str) -> None:
    torch.manual_seed(0)
    network = IFDD(NETWORKS[device]).to(device, torch.bfloat16).eval()
    clips = _inputs(network, device)[0].bfloat16()
    with torch.inference_mode():
        expected = network(clips).logits
        captured = capture(network, torch.zeros_like(clips))
        with _waiting_is_an_error(device):
            found = captured(clips).logits
    assert torch.equal(found, expected)
