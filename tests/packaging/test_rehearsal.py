"""The rehearsal for the GPU machine: its result belongs to these sources, and it hides no failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import judges, library, rehearsal
from benchmarks.gpu.rehearsal import Outcome, Stage, combined, copy_checkout, run, source_hash, stages

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


def quiet(line: str) -> None:
    del line


def test_result_belongs_to_these_sources() -> None:
    result = json.loads(rehearsal.RESULT.read_text())
    assert result["gpu_sources"] == source_hash(), "GPU sources have changed: run make rehearse-gpu"
    rows = {row["name"]: row for row in result["stages"]}
    assert list(rows) == [stage.name for stage in stages(ROOT, PYTHON, 1)], "a stage did not run"
    failed = {name: row["failures"] for name, row in rows.items() if row["status"] != "ok"}
    assert not failed
    for name, version in rehearsal.VERSIONS.items():
        assert result["versions"][name].startswith(version)
    assert rows["library"]["counts"]["cuda_ops"] == len(library.expected_ops()) == 20
    assert rows["specialisations"]["counts"]["spills"] == 0
    assert rows["specialisations"]["counts"]["compiled"] > 1300
    assert rows["ops"]["counts"]["passed"] > 2000
    assert rows["triton"]["counts"]["passed"] > 250


def test_a_plan_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the driver is made when its stage runs, in the rehearsal's own folder."""
    made: list[Path] = []
    monkeypatch.setattr(
        rehearsal, "_libcuda", lambda folder, python: made.append(folder) or {"LINKED": "yes"}
    )
    tree = tmp_path / "work" / "tree"
    tree.mkdir(parents=True)
    plan = {stage.name: stage for stage in stages(tree, PYTHON, 1)}
    assert not made
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "tree"]
    script = (
        "import os, sys; sys.exit((os.environ['LINKED'], os.environ['TRITON_INTERPRET']) != ('yes', '0'))"
    )
    stage = replace(plan["specialisations"], command=(PYTHON, "-c", script), judge=judges.exit_code)
    assert run(stage, tree, say=quiet).status == "ok"
    assert made == [tree.parent]

    def fails() -> dict[str, str]:
        raise FileNotFoundError("no gcc")

    outcome = run(replace(stage, prepare=fails), tree, say=quiet)
    assert outcome.failures == ["exit code 127: cannot begin: no gcc"]


def checkout(folder: Path) -> Path:
    cuda = ("csrc/cuda/a.cu", "csrc/common/b.h", "csrc/include/ifdd/accumulate.h", "CMakeLists.txt")
    for name in (*cuda, "csrc/cpu/b.cpp", "ifdd_kernels/triton/c.py", "tests/t.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    "changed", ["csrc/cuda/a.cu", "csrc/common/b.h", "ifdd_kernels/triton/c.py", "CMakeLists.txt"]
)
def test_sources_decide_the_hash(tmp_path: Path, changed: str) -> None:
    root = checkout(tmp_path)
    before = source_hash(root)
    (root / "tests" / "t.py").write_text("other")
    (root / "csrc" / "cpu" / "b.cpp").write_text("other")
    (root / "ifdd_kernels" / "triton" / "__pycache__").mkdir()
    (root / "ifdd_kernels" / "triton" / "__pycache__" / "c.pyc").write_text("other")
    assert source_hash(root) == before
    (root / changed).write_text("other")
    assert source_hash(root) != before


def test_the_copy_has_the_sources_and_nothing_built(tmp_path: Path) -> None:
    root, copy = checkout(tmp_path / "root"), tmp_path / "copy"
    (root / "ifdd_kernels" / "_ops.so").write_text("for another Python")
    copy_checkout(root, copy)
    assert (copy / "csrc" / "cuda" / "a.cu").read_text() == "csrc/cuda/a.cu"
    assert not (copy / "ifdd_kernels" / "_ops.so").exists()
    (copy / "ifdd_kernels" / "_ops.so").write_text("built here")
    age = (copy / "csrc" / "common" / "b.h").stat().st_mtime_ns
    (root / "csrc" / "cuda" / "a.cu").write_text("new")
    (root / "tests" / "t.py").unlink()
    time.sleep(0.01)
    os.utime(root / "csrc" / "common" / "b.h")
    copy_checkout(root, copy)
    assert (copy / "csrc" / "cuda" / "a.cu").read_text() == "new"
    assert not (copy / "tests" / "t.py").exists()
    # Or everything would be compiled again.
    assert (copy / "csrc" / "common" / "b.h").stat().st_mtime_ns == age
    assert (copy / "ifdd_kernels" / "_ops.so").read_text() == "built here"


def judged(stage: Stage, tmp_path: Path) -> Outcome:
    tree = tmp_path / "tree"
    tree.mkdir(exist_ok=True)
    return run(stage, tree, say=quiet)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('it works')", ""),
        ("import sys; sys.exit('no such kernel')", "exit code 1: no such kernel"),
        ("import os; os.abort()", "exit code -6"),
        ("import time; print(1, flush=True); time.sleep(60)", "exit code 124: stopped after 2 s"),
    ],
    ids=["right", "wrong", "dies", "hangs"],
)
def test_a_stage_says_how_it_ended(tmp_path: Path, code: str, said: str) -> None:
    outcome = judged(Stage("some", (PYTHON, "-c", code), judges.exit_code, limit_s=2), tmp_path)
    assert outcome.status == ("failed" if said else "ok")
    assert [failure[: len(said)] for failure in outcome.failures] == ([said] if said else [])


def test_output_nobody_can_read_is_a_failure(tmp_path: Path) -> None:
    (environment, *_) = stages(tmp_path / "tree", PYTHON, 1)
    stage = replace(environment, command=(PYTHON, "-c", "print('no JSON')"))
    outcome = judged(stage, tmp_path)
    assert outcome.status == "failed"
    assert "cannot be read" in outcome.failures[0]


def test_other_versions_and_missing_packages_are_named() -> None:
    found = {"python": "3.12.4", "torch": "2.11.0+cu130", "triton": "3.7.0", "torchvision": None}
    _, wrong = judges.environment(0, f"a warning\n{json.dumps(found)}\nanother", rehearsal.VERSIONS)
    assert wrong == ["torchvision is missing", "triton is 3.7.0, the GPU machine has 3.6.0"]


def test_a_library_without_all_kernels_is_a_failure() -> None:
    info = {"native": True, "reason": "", "cpu_ops": ["a", "b"], "cuda_ops": ["a"]}
    counts, wrong = judges.library(0, json.dumps(info), {"a", "b"})
    assert counts["cuda_ops"] == 1
    assert wrong == ["no CUDA kernel is registered for b"]
    info = {"native": False, "reason": "does not load", "cpu_ops": [], "cuda_ops": ["a", "b"]}
    assert judges.library(0, json.dumps(info), {"a", "b"})[1] == ["does not load"]


def test_what_does_not_compile_is_named() -> None:
    log = "[1/3] Building A\nFAILED: [code=1] a/b.cpp.o\n[2/3] Building B\nninja: build stopped\n"
    assert judges.build(1, log) == ({"compiled": 2}, ["a/b.cpp.o"])
    assert judges.build(1, "cmake was not found") == ({"compiled": 0}, ["exit code 1: cmake was not found"])
    assert judges.build(0, "[1/1] Building A\n") == ({"compiled": 1}, [])


TESTS = """
import pytest

def test_right(): pass
def test_wrong(): assert 1 == 2
@pytest.mark.skip(reason="why not")
def test_left_out(): pass
@pytest.fixture
def broken(): raise OSError("no fixture")
def test_without(broken): pass
"""


def test_counts_of_tests(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_right.py").write_text("def test_right(): pass\n")
    report = tmp_path / "some.xml"
    for names, expected in (
        (["test_some.py"], {"passed": 1, "skipped": 1, "failed": 2}),
        (["test_right.py"], {"passed": 1, "skipped": 0, "failed": 0}),
    ):
        command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *names]
        # Importing plugins takes longer than these tests.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        counts, wrong = judges.tests(done.returncode, done.stdout, report)
        assert counts == expected
        assert len(wrong) == expected["failed"]
    # Ended before its report was written, and with nothing collected.
    report.unlink()
    assert judges.tests(0, "collected\nKilled", report)[1] == ["exit code 1: Killed"]
    report.write_text("<testsuites><testsuite></testsuite></testsuites>")
    assert "no test has run" in judges.tests(5, "no tests ran", report)[1]


def test_spills_and_failures_are_named(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    assert judges.specialisations(1, "Killed", found)[1] == ["exit code 1: Killed"]
    report = {
        "specialisations": 3,
        "compiled": 2,
        "failed": {"kernel a": "Traceback\nPTXASError: no"},
        "spills": {"kernel b": 7},
        "launchers": True,
    }
    found.write_text(json.dumps(report))
    counts, wrong = judges.specialisations(1, "", found)
    assert counts == {"specialisations": 3, "compiled": 2, "spills": 1, "launchers": True}
    assert wrong == ["kernel a: PTXASError: no", "kernel b: 7 local loads and stores"]
    report |= {"failed": {}, "spills": {}}
    found.write_text(json.dumps(report))
    assert judges.specialisations(0, "", found)[1] == []
    assert judges.specialisations(1, "it failed", found)[1] == ["exit code 1: it failed"]


def test_gpu_check_stops_for_want_of_a_device_alone() -> None:
    log = "CPU, Python 3.12.1; library carried, of these sources\nSTOP: PyTorch finds no CUDA device\n"
    assert judges.stop(library.STOP, log)[1] == []
    assert judges.stop(0, log)[1]
    other = log.replace("carried, of these sources", "there is none")
    assert judges.stop(library.STOP, other)[1] == ["the library that was built here is not taken"]
    assert judges.stop(library.STOP, log.replace("no CUDA device", "a device"))[1]


def test_one_failure_does_not_hide_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def three(tree: Path, python: str, jobs: int) -> list[Stage]:
        codes = {"first": "raise SystemExit('first')", "second": "", "third": "raise SystemExit('third')"}
        return [Stage(n, (PYTHON, "-c", code), judges.exit_code) for n, code in codes.items()]

    monkeypatch.setattr(rehearsal, "stages", three)
    monkeypatch.setattr(rehearsal, "ROOT", checkout(tmp_path / "root"))
    out = tmp_path / "result.json"
    where = ["--folder", str(tmp_path / "work"), "--out", str(out)]
    assert rehearsal.main(where) == 1
    rows = json.loads(out.read_text())["stages"]
    ended = [(row["name"], row["status"]) for row in rows]
    assert ended == [("first", "failed"), ("second", "ok"), ("third", "failed")]
    assert rehearsal.main([*where, "--only", "second"]) == 0
    assert [row["status"] for row in json.loads(out.read_text())["stages"]] == ["failed", "ok", "failed"]
    with pytest.raises(SystemExit):
        rehearsal.main([*where, "--only", "fourth"])


def test_outcomes_of_other_sources_are_forgotten() -> None:
    before = {"gpu_sources": "old", "stages": [{"name": "build", "status": "ok"}]}
    new = [Outcome("ops", "ok")]
    names = ["build", "ops"]
    assert [row["name"] for row in combined(before, "old", new, names)["stages"]] == names
    assert [row["name"] for row in combined(before, "new", new, names)["stages"]] == ["ops"]


def test_requirements_are_printed_by_a_python_without_packages() -> None:
    """As the target asks for them in an environment that has just been made."""
    command = (PYTHON, "-S", "-m", "benchmarks.gpu.rehearsal", "--requirements")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == list(rehearsal.REQUIREMENTS)
    assert "-m benchmarks.gpu.rehearsal --requirements" in (ROOT / "Makefile").read_text()


def test_without_python_312_the_target_says_what_it_needs(tmp_path: Path) -> None:
    # It would rehearse.
    if (ROOT / "build" / "rehearsal" / "venv" / ".ready").exists():
        pytest.skip("the environment of the rehearsal is already there")
    absent = f"PYTHON312={tmp_path / 'python3.12'}"
    command = ("make", "--no-print-directory", "rehearse-gpu", absent, "REHEARSAL_VENV=build/rehearsal/venv")
    environment = {name: v for name, v in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "make rehearse-gpu needs Python 3.12" in done.stderr
    assert "PYTHON312=" in done.stderr
