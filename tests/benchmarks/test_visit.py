"""The plan of the two calls of the GPU check."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.gpu import check, library, sources, visit
from benchmarks.gpu.host import Machine
from benchmarks.gpu.steps import table
from benchmarks.suite import ours, place, plan
from ifdd_kernels.registry import REGISTRY

H200 = Machine("cuda", "NVIDIA H200", "9.0", "580.1", cores=16)


def test_a_missing_package_costs_its_own_stages() -> None:
    def skips(*missing: str) -> dict[str, str]:
        steps = visit.second_call(replace(H200, missing=frozenset(missing)))
        every = [stage for step in steps for stage in (*step.stages, *step.background)]
        # The tests of whole networks may be absent from this checkout.
        return {s.name: s.skip for s in every if s.skip and not s.skip.startswith("there is no tests/")}

    assert skips() == {}
    assert skips("ncu") == {"counters": "ncu is not installed"}
    compiling = {name for name, _ in visit.AHEAD.values()}
    assert set(skips("triton")) == {*compiling, "configurations"}
    assert set(skips("compute-sanitizer")) == {"memcheck", "racecheck"}
    assert {"native tests", "other tests"} <= set(skips("pytest"))
    without = visit._pytest(replace(H200, missing=frozenset({"pytest-xdist", "pytest-timeout"})))
    assert not [word for word in without if word == "-n" or "timeout" in word or "worker" in word]
    whole = visit._pytest(H200)
    assert whole[whole.index("-n") + 1] == "6"
    assert {"--timeout=25", "--timeout-method=thread"} <= set(whole)


def test_the_plan_in_its_order_fits_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    steps = visit.first_call(H200)
    names = [step.name for step in steps]
    right, times, training = (names.index(n) for n in ("native ops", "native times", "training step"))
    assert (right, times, training) == (0, 1, 2)
    tests = [step for step in steps if step.name in ("native tests", "network tests")]
    assert [step.name for step in tests] == ["native tests", "network tests"]
    whole = table(steps, builds=False)
    assert float(re.search(r"in all +(\d+) s", whole)[1]) <= check.BUDGET_S  # type: ignore[index]
    assert "(waiting)" not in whole
    checked = {re.search(r"--ops (\S+)", " ".join(s.command))[1] for s in steps[right].stages}  # type: ignore[index]
    forward = {name for name in library.expected_ops() if not name.endswith("_backward")}
    assert checked == forward - visit.UNMEASURED
    assert len(library.expected_ops()) == 20
    assert set(steps[times].stages[0].command[6].split(",")) == checked
    assert all("-k native" in " ".join(step.stages[0].command) for step in tests)
    # What runs Triton kernels waits for them to be compiled, those of the network before all others.
    beside = {stage.name: step.name for step in steps for stage in step.background}
    assert beside == {
        "compile the network": "native ops",
        "compile for rivals": "native tests",
        "compile for tests": "rivals of issm",
    }
    needs = {name: " ".join(step.needs) for name, step in zip(names, steps, strict=True) if step.needs}
    assert needs == {
        **dict.fromkeys(["training step", "inference of 16", "inference of 1"], "compile the network"),
        **dict.fromkeys([f"rivals of {op}" for op in visit.RIVALS], "compile for rivals"),
        "configurations": "compile for rivals",
        "other tests": "compile for tests",
    }
    sixteen, one = names.index("inference of 16"), names.index("inference of 1")
    assert sixteen < one
    assert not [name for name in names if "," in name]  # --only separates them by commas
    check.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    # This machine may have fewer cores.
    assert [line[:28].strip() for line in lines if not line.startswith(("build", "(waiting)"))] == [
        "library",
        *names,
        "in all",
    ]


def test_the_second_call_adds_what_the_review_asks() -> None:
    names = [step.name for step in visit.second_call(H200)]
    assert names[:2] == ["native ops", "memcheck"]
    assert names[-4:] == ["fp32 and tf32", "racecheck", "profile", "overhead"]
    assert set(names) >= {step.name for step in visit.first_call(H200)}
    started: set[str] = set()
    for step in visit.second_call(H200):
        started |= {stage.name for stage in step.background}
        assert started >= set(step.needs), step.name
    assert started == {name for name, _ in visit.AHEAD.values()}


def test_every_measurement_of_the_plan_finds_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "backends", lambda op, device: ["native", "triton", "reference"])
    tasks = list(plan.gpu())
    monkeypatch.setattr(plan, "gpu", lambda *_: iter(tasks))
    for step in visit.second_call(H200):
        for stage in step.stages:
            if "benchmarks" not in stage.command or "overhead" in stage.command:
                continue
            words = stage.command[list(stage.command).index("benchmarks") + 1 :]
            found = list(command.selected(command.parse(list(words))))
            assert found, stage.name
            assert all(task.case.batch == 16 for task in found) or "--batch 1" in " ".join(words)
            assert "native" not in words or all(
                "native" in {c.name for c in task.case.contenders} for task in found
            )


def test_sixteen_clips_come_before_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "backends", lambda op, device: ["native", "triton", "reference"])
    seen: dict[tuple[str, str, str, str], list[int]] = {}
    for task in plan.gpu():
        key = (task.case.name, task.case.label, task.precision, task.pass_name)
        seen.setdefault(key, []).append(task.case.batch)
    for key, batches in seen.items():
        if 16 in batches and 1 in batches:
            assert batches.index(16) < batches.index(1), key


def test_counters_are_of_kernels_that_exist() -> None:
    text = "".join(file.read_text() for file in (place.ROOT / "csrc" / "cuda").glob("*.cu"))
    assert len(visit.KERNELS) == 8
    for kernel in visit.KERNELS:
        assert re.search(rf"\b{kernel}\(", text), kernel


def test_digests_follow_what_an_op_depends_on(tmp_path: Path) -> None:
    files = ("csrc/cuda/a.cu", "csrc/cuda/b.cu", "csrc/cuda/rows.h", "csrc/cpu/a.cpp", "ifdd_kernels/x.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def digests() -> list[str]:
        sources.digest.cache_clear()
        return [sources.digest(op, tmp_path) for op in ("a", "b", "c", None)]

    def changed(name: str) -> list[bool]:
        before = digests()
        (tmp_path / name).write_text((tmp_path / name).read_text() + "!")
        return [a != b for a, b in zip(before, digests(), strict=True)]

    assert changed("csrc/cuda/a.cu") == [True, False, True, True]
    assert changed("csrc/cuda/rows.h") == [True] * 4
    assert changed("ifdd_kernels/x.py") == [True] * 4
    assert changed("csrc/cpu/a.cpp") == [False] * 4
    sources.digest.cache_clear()
    assert all(len(sources.digest(op)) == 16 for op in REGISTRY)
