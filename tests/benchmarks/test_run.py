"""The command line end to end on one small op, the plans, rotating inputs and profiles."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.gpu import small_shapes
from benchmarks.rivals.contender import DeviceMaker, prepare
from benchmarks.suite import (
    cases,
    cuda,
    datasheet,
    journal,
    machine,
    ours,
    overhead,
    place,
    plan,
    profile,
    results,
)
from benchmarks.suite.configurations import configurations, with_configurations
from benchmarks.suite.runner import Session
from benchmarks.suite.shapes import NetworkShape
from benchmarks.suite.timing import CLOCKS
from ifdd import IFDDConfig
from ifdd_kernels.registry import REGISTRY, Maker


def test_one_op_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = machine.Rates(1e10, {"fp32": 1e11, "bf16": 1e11})
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: rates)
    out = tmp_path / "rows.jsonl"
    words = ("--ops", "lifting_loss", "--batch", "1", "--threads", "1", "--clock", "cpu")
    assert command.main([*words, "--row-budget-s", "0.1", "--out", str(out)]) == 0
    rows = results.read(out)
    assert rows[0]["kind"] == "machine"
    assert {(r["precision"], r["pass"]) for r in rows[1:]} == {
        (p, q) for p in ("fp32", "bf16") for q in ("inference", "training")
    }
    assert (
        {"native", "original", "reference"} >= {r["contender"] for r in rows[1:]} >= {"original", "reference"}
    )
    for field in ("device", "torch", "triton", "commit", "library", "threads", "python"):
        assert field in rows[1]


@pytest.mark.parametrize("ops", ["lifting_loss", "overhead"])
@pytest.mark.parametrize("watched", [True, False])
def test_a_stage_without_time_for_all_of_it_is_not_done(
    ops: str,
    watched: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = machine.Rates(1e10, {"fp32": 1e11, "bf16": 1e11})
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: rates)
    out = tmp_path / "rows.jsonl"
    if watched:
        monkeypatch.setenv(journal.LOG, str(out))
        monkeypatch.setenv(journal.STAGE, "times")
    words = ["--ops", ops, "--batch", "1", "--threads", "1", "--out", str(out), "--clock", "cpu"]
    assert command.main([*words, "--budget-s", "-1"]) == 1
    said = capsys.readouterr().out.splitlines()
    if not watched:
        assert said.pop().startswith("nothing was measured: ")
    assert re.fullmatch(r"\d+ cases left out for want of time", said[-1])
    assert not {row["kind"] for row in results.read(out)} & {"time", "overhead", "finished"}


MEMORY = """
import re, resource
from pathlib import Path
import torch
from benchmarks.suite import memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

print(memory.keep_freed())
before = resident()
large, small = torch.ones(1 << 26), torch.ones(1 << 10)
del large
print(resident() - before)
memory.release()
print(resident() - before)
for _ in range(20):
    torch.ones(1 << 24)
before = faults()
for _ in range(10):
    torch.ones(1 << 24)
print(faults() - before)
memory.release()
print(memory.limit_to_free())
free = int(re.search(r"MemAvailable:\\s*(\\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
torch.empty(free // 2, dtype=torch.uint8)
try:
    torch.empty(int(0.97 * free), dtype=torch.uint8)
except RuntimeError as error:
    print(memory.is_lack(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted and limited as Linux does it")
def test_freed_memory_is_kept_until_it_is_given_back_and_more_than_is_free_refused() -> None:
    """In a process of its own, since the settings stay; beyond the limit is an error, not its end."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    kept, held, left, faults, *limit = done.stdout.split()
    assert limit == ["True", "True"]
    if kept != "True":
        pytest.skip("this C library cannot be told to keep freed memory")
    assert int(held) > 200
    assert int(left) < 50
    assert int(faults) < 1000  # ten tensors of 64 MB are 160,000 pages


def test_selection() -> None:
    options = command.parse(["--device", "cpu", "--ops", "issm", "--batch", "16", "--contenders", "native"])
    tasks = list(command.selected(options))
    assert tasks
    assert {(t.case.name, t.case.batch) for t in tasks} == {("issm", 16)}
    assert all({c.name for c in t.case.contenders} <= {"original", "native"} for t in tasks)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ops pool_token", r"--ops: there is no 'pool_token'; there are .*pool_tokens"),
        ("--ops issm --labels 16frames", "--labels: there is no '16frames'; .*: .*16 frames"),
        ("--ops issm --contenders natve", r"--contenders: there is no 'natve'; .*: .*original"),
        ("--ops issm --contenders cudnn,native", "--contenders: there is no 'cudnn'"),
        ("--ops issm --batch 3", r"--batch: there is no '3'; .*: 1, 4, 16"),
        ("--precision fp8", "--precision: there is no 'fp8'"),
        ("--passes backward", "--passes: there is no 'backward'; there are inference, training"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_at_once(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    assert command.main(["--device", "cpu", *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_the_options_leave_nothing_of_is_an_error_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: pytest.fail("measured"))
    assert command.main(["--device", "cpu", "--ops", "issm", "--precision", "tf32"]) == 2
    assert "nothing of the plan" in capsys.readouterr().out


def test_roofs_are_those_of_the_precisions_asked_for_and_within_their_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU that multiplies float16 at 0.4 GFLOP/s, by a clock that says so."""
    now = 0.0
    rates = {torch.float32: 8e10, torch.bfloat16: 4e10, torch.float16: 4e8}
    sides: dict[torch.dtype, int] = {}

    def matmul(a: torch.Tensor, b: torch.Tensor) -> None:
        nonlocal now
        sides[a.dtype] = len(a)
        now += 2 * len(a) ** 3 / rates[a.dtype]

    def clock(call: Any, repeats: int) -> float:
        before = now
        call()
        return now - before or 1e-3

    monkeypatch.setattr(torch, "matmul", matmul)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now)
    monkeypatch.setitem(CLOCKS, "wall", clock)
    found = machine.measure_rates("cpu", "wall", ("fp32", "bf16", "fp16"), budget_s=3.0, small=False)
    assert now < 4.0
    assert found.products == pytest.approx({"fp32": 8e10, "bf16": 4e10, "fp16": 4e8})
    assert sides[torch.float32] == 2048 > sides[torch.float16]
    sides.clear()
    assert set(machine.measure_rates("cpu", "wall", ("fp32",), budget_s=3.0).products) == {"fp32"}
    assert set(sides) == {torch.float32}

    asked: list[tuple[str, ...]] = []

    def measured(device: str, clock: str, precisions: Any, *_: Any) -> machine.Rates:
        asked.append(tuple(precisions))
        return machine.Rates(1e10, dict.fromkeys(precisions, 1e11))

    monkeypatch.setattr(machine, "measure_rates", measured)
    words = "--device cpu --ops lifting_loss --precision bf16 --batch 1 --budget-s -1 --out"
    command.main([*words.split(), str(tmp_path / "rows.jsonl")])
    assert asked == [("fp32", "bf16")]
    assert "products in fp32, bf16" in capsys.readouterr().out


def test_plans_cover_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {(t.case.name, t.case.batch, t.precision, t.pass_name) for t in plan.cpu(shorter=True)}
    for name, batch in (("issm", 1), ("issm", 16), ("pool_tokens", 1), ("pooled_attention", 1), ("ladm", 1)):
        for pass_name in ("inference", "training"):
            assert (name, batch, "fp32", pass_name) in done
            assert (name, batch, "bf16", pass_name) in done
    assert ("model", 1, "fp32", "inference") in done
    assert {("model", b, "fp32", "training") for b in (1, 2)} <= done
    # A GPU's backends, on a machine that may have none.
    monkeypatch.setattr(ours, "backends", lambda op, device: ["native", "triton", "reference"])
    everything = [(t.case.name, t.precision, t.pass_name) for t in plan.gpu()]
    # `issm` is static_dynamic_split, which on a GPU is two ops.
    # benchmarks.clips measures augment_clips, with the reading of clips.
    apart = {"static_dynamic_split", "augment_clips"}
    assert set(REGISTRY) <= {name for name, _, _ in everything} | apart
    assert [name for name, _, _ in everything[:3]] == ["issm"] * 3


def test_overhead_of_every_op_and_backend(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "CALLS", 2)
    monkeypatch.delenv("IFDD_TRITON_TUNE", raising=False)
    tuning: set[str | None] = set()
    clock = CLOCKS["cpu"]

    def clocked(call: Any, repeats: int) -> float:
        tuning.add(os.environ.get("IFDD_TRITON_TUNE"))
        return clock(call, repeats)

    monkeypatch.setitem(CLOCKS, "cpu", clocked)
    overhead.measure(session)
    assert tuning == {"0"}
    assert "IFDD_TRITON_TUNE" not in os.environ
    rows = results.read(session.writer.path, "overhead")
    assert {row["case"] for row in rows} == {"relu"} | {n for n, e in REGISTRY.items() if e.operator}
    assert all(0 < row["microseconds"] < 1e5 for row in rows)


def test_profile_finds_every_part() -> None:
    config = IFDDConfig(backbone="mvit_nano", image_size=64)
    case = cases.model(config, 1, "cpu")
    inputs = case.make(Maker(torch.float32))
    expected = {
        *("embedding", "qkv", "pools", "attention", "projections", "norms", "mlp", "pyramid"),
        *("split", "lifting", "head"),
    }  # fmt: skip
    for contender, training in itertools.product(case.only(("original", "ifdd")).contenders, (True, False)):
        if not training and contender.name != "ifdd":
            continue  # inference is found by the same hooks
        found = profile.profile_step(prepare(contender, inputs, training), "cpu")
        assert expected <= set(found.parts), contender.name
        other = found.parts[profile.OTHER].seconds if profile.OTHER in found.parts else 0.0
        assert other < 0.25 * found.seconds
        assert found.launches > (200 if training else 100)


def test_rotation_of_inputs() -> None:
    assert cuda.copies_for(10, 100) == cuda.MOST_COPIES
    assert cuda.copies_for(50, 100) == 4
    assert cuda.copies_for(10**9, 100) == 1
    order: list[int] = []
    call = cuda.rotation([lambda: order.append(0), lambda: order.append(1)])
    for _ in range(3):
        call()
    assert order == [0, 1, 0]


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_what_cannot_be_captured_fails_and_the_others_are_timed(
    error: type[Exception], session: Session, shape: NetworkShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that is not there: whatever a capture raises costs its own contender."""
    case = cases.issm(shape, 1, "cpu").only(("original", "native"))
    inputs = case.make(DeviceMaker(torch.float32))
    steps = {c.name: prepare(c, inputs, False) for c in case.contenders}

    def replay(captured: Any) -> Any:
        if captured[0] is steps["original"]:
            raise error("no capture here")
        return lambda: None

    said: list[str] = []
    monkeypatch.setattr(cuda, "Replay", replay)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    properties = SimpleNamespace(L2_cache_size=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    session.device, session.modes, session.say = "cuda", ("graph",), said.append
    cost = case.cost(inputs, torch.float32, False)
    calls = session._modes(steps, inputs, False, cost, {"case": "issm"}, "issm")
    assert {mode: set(found) for mode, found in calls.items()} == {"graph": {"native"}, "eager": set()}
    (row,) = results.read(session.writer.path, "failed")
    assert (row["contender"], row["mode"]) == ("original", "graph")
    assert row["reason"] == f"not captured: {error.__name__}: no capture here"
    assert session.failures == 1
    assert said == [f"  original: NOT CAPTURED, {row['reason']}"]


def test_small_shapes_reach_every_native_op() -> None:
    pytest.importorskip("ifdd_kernels")
    assert small_shapes.main("cpu") > 0


def test_datasheets() -> None:
    assert datasheet.rates("NVIDIA H200")["copy"] == 4.8e12
    assert datasheet.rates("NVIDIA H100 PCIe")["bf16"] < datasheet.rates("NVIDIA H100 80GB HBM3")["bf16"]
    assert datasheet.rates("Some CPU") == {}
    assert all(sheet.source for sheet in datasheet.DATASHEETS.values())


def test_folder_names() -> None:
    assert place.slug("cuda", "NVIDIA GeForce RTX 4090") == "nvidia-geforce-rtx-4090"
    assert place.slug("cpu", "Intel(R) Xeon(R) Processor (model 207)").startswith(
        "intel-xeon-processor-model-207-"
    )


@pytest.mark.slow
def test_cases_run_under_pytest_benchmark() -> None:
    pytest.importorskip("pytest_benchmark")
    command = (sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        (*command, "-k", "frame_correlation", "-W", "ignore"),
        cwd=place.ROOT,
        # In a worker of pytest-xdist the plugin switches measuring off.
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frame_correlation (network), B=1, training" in done.stdout


def test_every_configuration_is_a_contender(shape: NetworkShape) -> None:
    triton = pytest.importorskip("ifdd_kernels.triton._runtime")
    case = cases.pooled_attention(shape, shape.blocks[0], 1, "cpu")
    case = replace(case, contenders=(*case.contenders, ours.op_contender(case.name, "triton")))
    found = [c for c in with_configurations(case, torch.bfloat16).contenders if c.name.startswith("triton: ")]
    kernels = {contender.name.split()[1] for contender in found}
    assert len(kernels) >= 3  # forward, and the gradients of queries and keys
    assert len({contender.name for contender in found}) == len(found) > len(kernels)
    # Each forces its own kernel into its own configuration, and leaves the others alone.
    chosen: dict[str, set[str]] = {}

    def launched(self: Any, grid: Any, **arguments: Any) -> None:
        config = triton._forced(self, self.configs(arguments))
        chosen.setdefault(current, set()).add(f"{self.name} {config.tiles if config else None}")

    inputs = case.make(DeviceMaker(torch.bfloat16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.Kernel, "__call__", launched)
        current = found[0].name
        prepare(found[0], inputs, True)()
    own = found[0].name.split()[1]
    (forced,) = [entry for entry in chosen[current] if entry.startswith(own)]
    (config,) = [c for _, name, c in configurations(case.name, inputs) if name == current]
    assert forced == f"{own} {config.tiles}"
    assert all(entry.endswith(" None") for entry in chosen[current] if not entry.startswith(own))
    assert with_configurations(cases.model(IFDDConfig(), 1, "cpu"), torch.bfloat16).name == "model"
