"""Counts of launches, bytes, FLOPs and memory on a fake GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.counted import __main__ as command
from benchmarks.counted import foreach, fused, rows
from benchmarks.counted.trace import Counter, Launch, Trace
from benchmarks.counted.workloads import Workload
from benchmarks.fake_gpu.machine import fake_gpu
from ifdd_kernels.triton import interpreted

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or torch.version.cuda is not None, reason="fake CUDA tensors need a CPU build"
)
#: A training step of a small network. A change of these numbers is a change of what a GPU has to do: where it
#: is wanted, write the new ones here and count the rows of benchmarks/results/counted.json again.
LAUNCHES = {"mixing": 6, "forward": 111, "loss": 8, "backward": 264, "optimiser": 7}
BYTES = {
    "products": 23_686_818,
    "attention": 9_283_336,
    "our kernels": 21_527_072,
    "everything else": 44_792_218,
}
KEPT = 6_753_638


@pytest.mark.skipif(not interpreted(), reason="Triton's tiles and so its partial sums are others")
def test_a_small_training_step_is_counted_exactly() -> None:
    workload = Workload(batch=2, frames=8, network="ifdd_nano")
    row = rows.row(workload, workload.trace())
    assert row["launches_by_phase"] == LAUNCHES
    assert row["bytes_by_kind"] == BYTES
    assert row["kept_for_backward_bytes"] == KEPT
    assert row["launches"] == sum(LAUNCHES.values())
    assert row["bytes_total"] == sum(BYTES.values())


@pytest.mark.nightly
@pytest.mark.skipif(not rows.RESULT.exists(), reason="nothing is counted")
def test_the_results_are_those_of_the_sources(tmp_path: Path) -> None:
    """The step of the documented size, in a process where Triton has the tiles of a GPU."""
    out = tmp_path / "counted.json"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = [sys.executable, "-m", "benchmarks.counted", "--out", str(out)]
    subprocess.run(run, check=True, env=environment, stdout=subprocess.DEVNULL)
    (now,) = json.loads(out.read_text())
    kept = {row["counted"] for row in json.loads(rows.RESULT.read_text())}
    assert now["counted"] in kept, "count again: python -m benchmarks.counted"


def _count(program: Callable[[Tensor, Counter], object]) -> Trace:
    """Of (4, 8) float32 values that have a gradient."""
    counter = Counter()
    with fake_gpu():
        x = torch.empty(4, 8, device="cuda", requires_grad=True)
        with counter.running():
            program(x, counter)
    return counter.trace


def _moved(trace: Trace) -> list[tuple[str, int, int]]:
    return [(launch.name, launch.read, launch.written) for launch in trace.launches]


def test_bytes_are_those_of_memory() -> None:
    """Views start nothing, an expanded tensor is read once, a fill reads nothing."""

    def program(x: Tensor, counter: Counter) -> None:
        values = x.detach()
        values.t().reshape(-1)
        values[:1].expand(4, 8) * values
        torch.zeros_like(values)
        values.add_(1)
        values.zero_()

    size = 4 * 8 * 4
    expected = [
        ("clone", size, size),
        ("mul", size + size // 4, size),
        ("zeros_like", 0, size),
        ("add_", size, size),
        ("zero_", 0, size),
    ]
    assert _moved(_count(program)) == expected


def test_products_have_flops_and_backward_belongs_to_the_module_of_its_forward() -> None:
    def program(x: Tensor, counter: Counter) -> None:
        with torch.device("cuda"):
            network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Sequential(torch.nn.Linear(8, 2)))
        counter.trace.launches.clear()
        counter.phase = "forward"
        out = network(x).sum()
        counter.phase = "backward"
        out.backward()

    products = [launch for launch in _count(program).launches if launch.kind == "products"]
    found = [(launch.phase, launch.part, launch.flops) for launch in products]
    assert found == [
        ("forward", "0", 2 * 4 * 8 * 8),
        ("forward", "1.0", 2 * 4 * 8 * 2),
        ("backward", "1.0", 2 * 4 * 8 * 2),
        ("backward", "1.0", 2 * 4 * 8 * 2),
        ("backward", "0", 2 * 4 * 8 * 8),
        ("backward", "0", 2 * 4 * 8 * 8),
    ]


def test_memory_is_followed_until_it_is_gone() -> None:
    def program(x: Tensor, counter: Counter) -> None:
        first = x.detach() + 1
        second = first + 1
        counter.mark("two")
        del first
        counter.mark("one")
        del second

    trace = _count(program)
    assert trace.marks == {"two": 256, "one": 128}
    assert (trace.alive, trace.peak) == (0, 256)


@pytest.mark.parametrize(
    ("sizes", "depth", "launches"),
    [
        ([10] * 36, 4, 1),
        ([10] * 37, 4, 2),
        ([65_536 * 320], 2, 1),
        ([65_536 * 320 + 1], 2, 2),
        ([0, 10], 1, 1),
        ([], 1, 0),
    ],
)
def test_launches_of_lists(sizes: list[int], depth: int, launches: int) -> None:
    assert foreach.packed(sizes, depth) == launches


def test_what_fuses_is_estimated_by_runs_of_other_ops() -> None:
    kinds = [
        *(("mixing", "everything else"), ("mixing", "everything else")),
        *(("forward", "everything else"), ("forward", "everything else"), ("forward", "products")),
        *(("forward", "everything else"), ("backward", "everything else"), ("backward", "our kernels")),
        *(("backward", "everything else"), ("optimiser", "everything else")),
    ]
    trace = [Launch(phase, "", kind, "", 2, 0, 0, 0) for phase, kind in kinds]
    assert fused.launches(trace) == 2 + 2 + 1 + 2 + 1 + 1 + 2 + 1 + 2


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--precision", "fp16"], "--precision: there is no 'fp16'; there are fp32, bf16, bf16-weights"),
        (["--batch", "0"], "--batch must be positive integers, e.g. 1,16; got '0'"),
    ):
        with pytest.raises(SystemExit):
            command.parse(arguments)
        assert message in capsys.readouterr().err


def test_rows_of_the_same_workload_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "counted.json"
    rows.write([{"workload": "training", "batch": 1, "launches": 3}, {"workload": "inference"}], path)
    rows.write([{"workload": "training", "batch": 1, "launches": 2}], path)
    expected = [{"workload": "training", "batch": 1, "launches": 2}, {"workload": "inference"}]
    assert json.loads(path.read_text()) == expected
