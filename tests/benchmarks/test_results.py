"""Result files survive a cut; comparison sees what became slower and not what is noise."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.report import compare
from benchmarks.suite import results
from benchmarks.suite.results import Writer
from benchmarks.suite.timing import CLOCKS, interleave, ratios, summary
from ifdd_kernels.testing import thread_count


def test_a_cut_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    Writer(path, {"device": "x"}).write("machine", copy=1.23456789)
    with path.open("a") as file:
        file.write('{"kind": "time", "case": "cu')
    Writer(path).write("skipped", reason="later")
    assert [row["kind"] for row in results.read(path)] == ["machine", "skipped"]
    assert results.read(path, "machine") == [{"kind": "machine", "copy": 1.23457, "device": "x"}]


def test_a_row_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the file: rows of several processes stand in it one after the other."""
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: writes.append(line) or write(file, line))
    first, second = (Writer(tmp_path / "rows.jsonl") for _ in range(2))
    first.write("machine", text="x" * 100_000)
    second.write("skipped")
    first.write("skipped")
    assert len(writes) == 3
    assert (tmp_path / "rows.jsonl").read_bytes() == b"".join(writes)
    assert [row["kind"] for row in results.read(first.path)] == ["machine", "skipped", "skipped"]


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        Writer(tmp_path / "rows.jsonl").write("tim")


def write_run(path: Path, seed: int, slower: dict[str, float] | None = None, machine: float = 1.0) -> Path:
    """A run with 4 % noise on every reading, and on each round what both sides share."""
    draw = random.Random(seed)
    writer = Writer(path)
    for case in ("a", "b", "c", "d", "e"):
        shared = [machine * draw.lognormvariate(0, 0.08) for _ in range(15)]
        names = {"original": 5e-3, "native": 1e-3}
        readings = {
            name: [
                s * time * (slower or {}).get(f"{case} {name}", 1) * draw.lognormvariate(0, 0.04)
                for s in shared
            ]
            for name, time in names.items()
        }
        for name, values in readings.items():
            times, ratio = summary(values), ratios(readings["original"], values)
            writer.write(
                "time", case=case, label="", batch=1, precision="fp32", contender=name, mode="eager",
                median_s=times.median, low_s=times.low, high_s=times.high, speedup=ratio.median,
                speedup_low=ratio.low, speedup_high=ratio.high, **{"pass": "inference"},
            )  # fmt: skip
    return path


def test_compare_reports_what_became_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write_run(tmp_path / "old", 1)
    new = write_run(tmp_path / "new", 2, {"c native": 1.4, "d native": 0.6})
    assert compare.main([str(old), str(new)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["slower", "c"], ["faster", "d"]]
    assert lines[-1] == "1 slower, 1 faster, 8 same, 0 gone"


@pytest.mark.parametrize("seed", range(10))
def test_compare_does_not_cry_at_noise(tmp_path: Path, seed: int) -> None:
    old, new = write_run(tmp_path / "old", seed), write_run(tmp_path / "new", seed + 100)
    assert compare.main([str(old), str(new)]) == 0


def test_a_slower_machine_slows_no_kernel(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "old", 1), write_run(tmp_path / "new", 2, machine=1.6)
    slower = [c for c in compare.changes(old, new) if c.verdict == "slower"]
    assert {c.new["contender"] for c in slower} == {"original"}


def test_what_is_gone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write_run(tmp_path / "old", 1)
    new = tmp_path / "new"
    new.write_text("".join(old.read_text().splitlines(keepends=True)[:-1]))
    assert compare.main([str(old), str(new)]) == 0
    assert "gone    e" in capsys.readouterr().out
    (tmp_path / "empty").write_text("")
    assert compare.main([str(old), str(tmp_path / "empty")]) == 2


def test_a_slowed_kernel_is_measured_and_reported(tmp_path: Path) -> None:
    """End to end through the clock: the same work, and three times of it.

    In one thread: several wait for each other on a busy machine, and the same work takes times its own.
    """
    x = torch.randn(200, 200)

    def work(times: int) -> None:
        for _ in range(times):
            torch.mm(x, x)

    def run(path: Path, native: int) -> Path:
        readings = interleave(
            {"original": lambda: work(4), "native": lambda: work(native)}, CLOCKS["cpu"], 0.3, 9
        )
        writer = Writer(path)
        for name, values in readings.items():
            times, ratio = summary(values), ratios(readings["original"], values)
            row: dict[str, Any] = {"median_s": times.median, "low_s": times.low, "high_s": times.high}
            row |= {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}
            writer.write("time", case="mm", contender=name, mode="eager", **row)
        return path

    with thread_count(1):
        old, new = run(tmp_path / "old", 2), run(tmp_path / "new", 6)
    verdicts = {c.new["contender"]: c.verdict for c in compare.changes(old, new)}
    assert verdicts["native"] == "slower"


def test_rounds_take_turns() -> None:
    order: list[str] = []
    clock = lambda call, repeats: (call(), 1.0)[1]  # noqa: E731
    readings = interleave({n: lambda n=n: order.append(n) for n in "ab"}, clock, 0.0, fewest=4)  # type: ignore[misc]
    assert {name: len(values) for name, values in readings.items()} == {"a": 4, "b": 4}
    assert order[4:] == list("abbaabba")
    assert json.dumps(summary([1.0]).count) == "1"
