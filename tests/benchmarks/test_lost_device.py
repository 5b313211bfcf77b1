"""A measurement in which one contender hangs and another loses the device: the others' times are there."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.stages import Runner, Stage
from benchmarks.suite import journal, results

SCRIPT = """
import ctypes, sys, time
from dataclasses import replace
import torch
from benchmarks.suite import cases, runner
from benchmarks.rivals.contender import Bound, Contender
from benchmarks.suite.journal import Journal
from benchmarks.suite.machine import Rates
from benchmarks.suite.results import Writer
from benchmarks.suite.shapes import network_shape
from ifdd import IFDDConfig

torch.set_num_threads(1)
case = cases.issm(network_shape(IFDDConfig(backbone="mvit_nano", image_size=64)), 1, "cpu")
original, native = case.only(("original", "native")).contenders
lost = []

def planted(name, act):
    def bind(inputs):
        def run(*activations):
            act()
            return original.bind(inputs).function(*activations)
        return Bound(run, {})
    return Contender(name, bind)

def hang():
    ctypes.PyDLL(None).sleep(600)

def fault():
    lost.append(True)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

case = replace(case, contenders=(original, planted("hangs", hang), planted("faults", fault), native))
# On a busy machine the honest ones may take their time.
runner.Session._limit = lambda self, contender: 2.0 if contender.name == "hangs" else 100.0
own = Journal.of_process()
session = runner.Session(
    "cpu", Writer(own.path, {"device": "imagined"}), Rates(1e10, {"fp32": 1e11}), "cpu",
    deadline=time.perf_counter() + 300, row_budget_s=0.05, most=3,
    journal=own, limit_s=100.0, answers=lambda: not lost,
)
session.run(case, "fp32", "inference")
sys.exit(session.failures > 0)
"""


def test_a_contender_that_hangs_and_one_that_loses_the_device(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "log.jsonl", tmp_path / "log.txt", 280.0, say=lambda line: None)
    outcome = runner.run(Stage("issm", (sys.executable, "-c", SCRIPT), 280.0, items=True))
    text = runner.text.path.read_text()
    assert "in hang" in text  # the stack
    item = "issm (8 frames), B=1, fp32, inference"
    ended = {journal.name(row): row["status"] for row in results.read(runner.log, "finished")}
    assert ended == {f"{item} / hangs": "hung", f"{item} / faults": "faulted", item: "ok"}, text
    timed = {row["contender"] for row in results.read(runner.log, "time")}
    assert timed == {"original", "native"}
    failed = {row["contender"]: row["reason"] for row in results.read(runner.log, "failed")}
    assert "did not come back within 2 s" in failed["hangs"]
    assert "illegal memory access" in failed["faults"]
    assert outcome.status == "failed"
    assert f"{item} / hangs: hung" in outcome.detail
    assert f"{item} / faults: faulted" in outcome.detail
