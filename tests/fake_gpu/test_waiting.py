"""No part of a training step or an inference makes the host wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.counted.workloads import Workload
from benchmarks.fake_gpu import waiting
from benchmarks.fake_gpu.machine import fake_gpu
from benchmarks.fake_gpu.waiting import NoWaiting, WaitsError
from fake_gpu.marks import CPU_BUILD
from ifdd_kernels import split_frames

PLANTED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x.sum().item(), "aten::_local_scalar_dense waits"),
    "bool": (lambda x: bool(x.sum() > 0), "waits"),
    "equal": (lambda x: torch.equal(x, x + 1), "aten::equal waits"),
    "nonzero": (lambda x: x.nonzero(), "aten::nonzero waits"),
    "masked_select": (lambda x: x.masked_select(x > 0), "aten::masked_select waits"),
    "unique": (lambda x: x.unique(), "waits"),
    "mask": (lambda x: x[x > 0], "aten::index indexes by a mask"),
    "masked write": (lambda x: x.index_put_((x > 0,), x.new_zeros(())), "indexes by a mask"),
    "to the host": (lambda x: x.cpu(), "aten::_to_copy copies to the host"),
    "into the host": (lambda x: torch.empty(4, 4).copy_(x), "aten::copy_ copies to the host"),
    "from the host": (lambda x: x + torch.ones(4, 4).cuda(), "aten::_to_copy copies from unpinned"),
    "unpinned": (lambda x: torch.ones(4, 4).to("cuda", non_blocking=True), "copies from unpinned"),
    "number": (lambda x: x * torch.tensor(2.0, device="cuda"), "copies from unpinned"),
    "host tensor": (lambda x: x * torch.tensor(2.0), "aten::mul takes a tensor of the host"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_waits_is_found(name: str) -> None:
    program, message = PLANTED[name]
    with fake_gpu():
        x = torch.empty(4, 4, device="cuda")
        with pytest.raises(WaitsError, match=message), NoWaiting():
            program(x)


def test_what_does_not_wait_is_left_alone() -> None:
    watch = NoWaiting()
    with fake_gpu():
        x, places = torch.empty(4, 4, device="cuda"), torch.empty(3, dtype=torch.int64, device="cuda")
        with watch:
            y = torch.where(x > 0, x, 2.0 * x)[places]
            y.sum().to("cpu", non_blocking=True)
            torch.ones(2) + torch.tensor(3.0).item()
    assert watch.seen >= 4


@CPU_BUILD
def test_a_sync_inside_of_a_definition_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an op runs as PyTorch's ops, these are looked at."""

    def waits(x: Tensor, *rest: Any) -> Any:
        return x.sum().item()

    monkeypatch.setattr(waiting, "python_of", lambda name: waits)
    with fake_gpu():
        x, index = torch.empty(1, 4, 2, 8, device="cuda"), torch.empty(1, 2, device="cuda")
        with pytest.raises(WaitsError, match="waits for the device"), NoWaiting():
            split_frames(x, index, index, backend="reference")


@CPU_BUILD
@pytest.mark.parametrize(
    "workload",
    [
        Workload("training", 2, 8, "bf16", network="ifdd_nano", ema_decay=0.99, gradient_clip=1.0),
        Workload("inference", 2, 8, "bf16-weights", network="ifdd_nano"),
        pytest.param(
            Workload("training", 2, 8, "fp32", "triton", network="ifdd_nano"), marks=pytest.mark.nightly
        ),
    ],
    ids=lambda workload: f"{workload.workload}-{workload.precision}",
)
def test_a_whole_step_never_waits(workload: Workload) -> None:
    """Mixing, forward, loss, backward, clipped gradients, optimiser and average; metrics and logs are watched
    by tests/training/test_step.py.
    """
    watch = NoWaiting()
    workload.run(watch)
    assert watch.seen > (500 if workload.workload == "training" else 100)
