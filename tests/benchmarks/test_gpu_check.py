"""The control flow of the GPU check with stages that succeed, fail, hang and run out of budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, results
from benchmarks.gpu_check import Runner, Stage
from benchmarks.results import Writer


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path, Writer(tmp_path / "rows.jsonl"), 30.0, say=lambda line: None)


def test_stages_do_not_take_each_other_down(runner: Runner, tmp_path: Path) -> None:
    stages = [
        Stage("good", python("print('fine')"), 1.0),
        Stage("bad", python("import sys; print('broken'); sys.exit(3)"), 1.0),
        Stage("none", python("import sys; sys.exit(5)"), 1.0, accepted={5: "no test was selected"}),
        Stage("absent", ("/no/such/program",), 1.0),
        Stage("left out", python("print()"), 1.0, skip="no CUDA device"),
        Stage("variables", python("import os; print(os.environ['IFDD_X'])"), 1.0, {"IFDD_X": "passed on"}),
    ]
    outcomes = [runner.run(stage) for stage in stages]
    assert [o.status for o in outcomes] == ["ok", "failed", "ok", "failed", "skipped", "ok"]
    details = {o.name: o.detail for o in outcomes}
    assert details["good"] == "fine"
    assert "exit code 3" in details["bad"]
    assert "broken" in details["bad"]
    assert details["none"] == "no test was selected"
    assert details["variables"] == "passed on"
    rows = results.read(runner.writer.path, "stage")
    assert [row["stage"] for row in rows] == [stage.name for stage in stages]
    assert (tmp_path / "logs" / "bad.log").read_text() == "broken\n"


def test_a_hanging_stage_is_stopped_with_its_children(runner: Runner, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.perf_counter()
    outcome = runner.run(Stage("hangs", python(code), share=1 / 30))
    assert outcome.status == "timeout"
    assert time.perf_counter() - begin < 2.5 + gpu_check.GRACE_S
    time.sleep(max(0, 3.5 - (time.perf_counter() - begin)))
    assert not mark.exists()


def test_a_failed_build_falls_back(runner: Runner) -> None:
    without = Stage("build", python("print('without')"), 1.0)
    outcome = runner.run(Stage("build", python("import sys; sys.exit(1)"), 1.0, fallback=without))
    assert (outcome.status, outcome.detail) == ("ok", "without")
    assert [row["status"] for row in results.read(runner.writer.path)] == ["failed", "ok"]


def test_budget_is_kept_for_what_is_promised_one(runner: Runner) -> None:
    runner.reserve = {"benchmarks": 20.0, "profile": 5.0}
    assert runner.limit(Stage("build", (), 1.0)) == pytest.approx(5, abs=0.5)
    assert runner.limit(Stage("tests", (), 0.1)) == pytest.approx(3)
    assert runner.limit(Stage("benchmarks", (), 1.0)) == pytest.approx(25, abs=0.5)
    runner.budget_s = 0.0
    outcome = runner.run(Stage("late", python("print()"), 1.0))
    assert (outcome.status, outcome.detail) == ("skipped", "the budget is used up")


def test_a_stage_is_told_its_limit(runner: Runner) -> None:
    stage = Stage("benchmarks", python("import sys; print(sys.argv[1:])"), 1.0, takes_budget=True)
    outcome = runner.run(stage)
    assert outcome.detail in ("['--budget-s', '20']", "['--budget-s', '19']")


def test_stages_of_a_machine_with_a_gpu(tmp_path: Path) -> None:
    plan = gpu_check.stages(tmp_path / "out.jsonl", has_gpu=True, capability=(8, 9))
    by_name = {stage.name: stage for stage in plan}
    measuring = ["benchmarks", "profile", "fastest"]
    assert list(by_name) == ["build", "tests", "triton", "memcheck", "racecheck", *measuring]
    assert by_name["fastest"].command[-1] == str(tmp_path / "out-fastest.json")
    assert "--write" not in by_name["fastest"].command
    assert not by_name["benchmarks"].skip
    assert all(stage.skip for stage in gpu_check.stages(tmp_path, has_gpu=False)[1:])


@pytest.mark.parametrize(
    ("capability", "architecture"), [((9, 0), "90a-real"), ((8, 9), "89-real"), ((10, 0), "100a-real")]
)
def test_build_is_for_the_device_or_says_that_it_is_not(
    capability: tuple[int, int], architecture: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("IFDD_CUDA_ARCHS", raising=False)
    stage = gpu_check._build("/opt/cuda/bin/nvcc", True, capability)
    assert stage.environment["IFDD_CUDA"] == "ON"
    assert stage.environment["IFDD_CUDA_ARCHS"] == architecture
    assert stage.environment["PATH"].startswith("/opt/cuda/bin")
    assert stage.fallback is not None
    assert stage.fallback.environment["IFDD_CUDA"] == "OFF"
    assert not capsys.readouterr().out
    without = gpu_check._build(None, True, capability)
    assert without.environment["IFDD_CUDA"] == "OFF"
    assert "WITHOUT CUDA kernels: there is no nvcc" in capsys.readouterr().out


def test_only_files_with_gpu_tests_are_collected(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import nothing_that_exists\n")
    (tmp_path / "test_b.py").write_text("@pytest.mark.gpu\ndef test(): pass\n")
    assert gpu_check.gpu_tests(tmp_path) == [str(tmp_path / "test_b.py")]


def test_cut_off_from_outside(tmp_path: Path) -> None:
    """SIGTERM while a stage runs: the stage ends too, and the file says what happened."""
    code = f"""
import sys
from pathlib import Path
from benchmarks import gpu_check
gpu_check.stages = lambda *a, **k: [gpu_check.Stage("long", (sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"), 1.0)]
gpu_check.main(["--budget-s", "100", "--results", {str(tmp_path)!r}])
"""  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    log = tmp_path / "logs" / "long.log"
    deadline = time.perf_counter() + 60
    while not (log.exists() and log.read_text()) and time.perf_counter() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    (file,) = tmp_path.glob("gpu-check-*.jsonl")
    (row,) = results.read(file, "stage")
    assert (row["stage"], row["status"]) == ("check", "timeout")


def test_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu_check.main(["--dry-run", "--results", str(tmp_path)]) == 0
    assert "benchmarks:" in capsys.readouterr().out
    assert not os.listdir(tmp_path)  # noqa: PTH208
