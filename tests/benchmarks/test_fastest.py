"""The table of the fastest backends, from a made-up result file of a GPU that is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import fastest
from benchmarks.rivals.contender import DeviceMaker
from benchmarks.suite import cases, ours, results
from benchmarks.suite.results import Writer
from benchmarks.suite.runner import Session
from benchmarks.suite.shapes import NetworkShape
from ifdd_kernels import _measured

DEVICE = "NVIDIA imagined"
SIZES = [16, 1569, 4, 96, 393]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def time(file: Path, contender: str, median: float, **other: Any) -> None:
    """A row with quartiles a tenth either way."""
    row = {
        "case": "pooled_attention",
        "precision": "bf16",
        "pass": "inference",
        "contender": contender,
        "mode": "graph",
        "clock": "cuda",
        "median_s": median,
        "low_s": 0.9 * median,
        "high_s": 1.1 * median,
        "dtype": "bfloat16",
        "sizes": SIZES,
    }
    Writer(file, {"device": DEVICE}).write("time", **{**row, **other})


def choices(file: Path) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    found = fastest.table([file])[DEVICE]
    return {op: [(entry.backend, entry.sizes) for entry in entries] for op, entries in found.items()}


def test_faster_beyond_the_noise_is_an_entry(file: Path) -> None:
    time(file, "native", 1.0)
    time(file, "sdpa", 0.7)
    time(file, "triton", 0.8)
    # Here the quartiles overlap, and in the other op too: the nearest measurement says native.
    time(file, "native", 1.0, sizes=[1, *SIZES[1:]])
    time(file, "sdpa", 0.85, sizes=[1, *SIZES[1:]])
    time(file, "native", 1.0, case="pool_tokens", sizes=[2])
    time(file, "triton", 0.95, case="pool_tokens", sizes=[2])
    assert choices(file) == {
        "pool_tokens": [],
        "pooled_attention": [("native", (1, *SIZES[1:])), ("sdpa", tuple(SIZES))],
    }
    (_, entry) = fastest.table([file])[DEVICE]["pooled_attention"]
    assert entry == _measured.Entry("sdpa", "bfloat16", False, tuple(SIZES), "run.jsonl")


def test_rows_that_say_nothing_of_a_choice(file: Path) -> None:
    time(file, "native", 1.0)
    time(file, "rewrite", 0.1)  # no backend
    time(file, "triton", 0.1, mode="eager")  # native has a graph's time, this has none
    time(file, "sdpa", 0.1, clock="wall")
    time(file, "sdpa", 0.1, precision="tf32", dtype="float32")
    time(file, "sdpa", 0.1, case="model")
    assert choices(file) == {"pooled_attention": []}


def test_a_missing_graph_of_the_assumed_backend_is_no_victory(file: Path) -> None:
    time(file, "native", 1.0, mode="eager")
    time(file, "triton", 2.0, mode="eager")
    time(file, "triton", 0.5)
    assert choices(file) == {"pooled_attention": []}
    time(file, "triton", 0.5, mode="eager")  # measured again
    assert choices(file) == {"pooled_attention": [("triton", tuple(SIZES))]}


def test_without_native_kernels_triton_is_assumed(file: Path) -> None:
    time(file, "triton", 1.0)
    time(file, "reference", 0.5)
    assert choices(file) == {"pooled_attention": [("reference", tuple(SIZES))]}


def test_command(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed, out = tmp_path / "measured.json", tmp_path / "out.json"
    old = _measured.Entry("triton", "float32", False, (3,), "old.jsonl")
    before = {DEVICE: {"pool_tokens": [old], "pooled_attention": [old]}, "another": {"linear": [old]}}
    installed.write_text(fastest.text(before))
    assert _measured.parse(json.loads(installed.read_text())) == before
    monkeypatch.setattr(_measured, "PATH", installed)
    time(file, "native", 1.0)
    time(file, "sdpa", 0.7)
    fastest.main([str(file), "--out", str(out)])
    assert "1 ops measured on 1 GPUs; auto's assumption is beaten in 1" in capsys.readouterr().out
    assert _measured.parse(json.loads(installed.read_text())) == before
    proposed = _measured.parse(json.loads(out.read_text()))
    assert proposed == fastest.table([file])
    fastest.main([str(file), "--write"])
    after = _measured.parse(json.loads(installed.read_text()))
    assert after == {**before, DEVICE: {"pool_tokens": [old], **proposed[DEVICE]}}
    time(file, "native", 0.5)
    fastest.main([str(file), "--write"])
    assert set(_measured.parse(json.loads(installed.read_text()))[DEVICE]) == {"pool_tokens"}


def test_the_package_holds_what_is_installed() -> None:
    text = _measured.PATH.read_text()
    assert text == fastest.text(_measured.parse(json.loads(text)))


def test_rows_hold_what_a_choice_is_looked_up_by(shape: NetworkShape) -> None:
    block = shape.blocks[0]
    case = cases.pooled_attention(shape, block, 2, "cpu")
    inputs = case.make(DeviceMaker(torch.float32, "cpu"))
    query, key = inputs.activations["query"], inputs.activations["key"]
    assert ours.choice_fields(case.name, inputs, torch.bfloat16) == {
        "dtype": "bfloat16",
        "sizes": [*query.shape, key.shape[1]],
    }
    assert ours.choice_fields("model", inputs, torch.float32) == {}


def test_sdpa_is_timed_where_it_may_be_chosen(shape: NetworkShape, session: Session) -> None:
    case = cases.pooled_attention(shape, shape.blocks[0], 2, "cpu")
    case = replace(case, contenders=(*case.contenders, ours.op_contender(case.name, "sdpa")))
    session.run(case.only(("original", "rewrite", "sdpa")), "fp32", "training")
    rows = results.read(session.writer.path)
    assert {(row["kind"], row["contender"]) for row in rows} == {
        ("time", name) for name in ("original", "rewrite", "sdpa")
    }
    assert all(row["dtype"] == "float32" and row["sizes"][0] == 2 for row in rows)
