"""The GPU check as a whole: runs of it on a device that is not there, on a bad day."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import check, host, library, visit
from benchmarks.gpu.host import Machine
from benchmarks.gpu.library import STOP, Found
from benchmarks.gpu.stages import Runner, Stage
from benchmarks.gpu.steps import START_S, Step, done, only, table
from benchmarks.suite import place, results

FAKE = str(Path(__file__).parent / "fake_device.py")
H200 = Machine("cuda", "NVIDIA H200", "9.0", "580.1", cores=16)


def fake(name: str, *items: str, limit_s: float = 30.0) -> Stage:
    return Stage(name, (sys.executable, FAKE, *items), limit_s, items=True)


def says(text: str, code: int = 0) -> Stage:
    return Stage("library", (sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"), 20.0)


#: As the real plan: ops beside each other with something in the background, tests, times, the training step.
STEPS = [
    Step(
        "native ops",
        1.0,
        [fake("check pools", "pools=ok"), fake("check split", "split=ok"), fake("check loss", "loss=ok")],
        at_once=2,
        background=[Stage("compile Triton", (sys.executable, "-c", "print('compiled')"), 20.0)],
    ),
    Step("native times", 1.0, [fake("native times", "pools 16=ok", "split 16=ok")]),
    Step("training step", 1.0, [fake("training step", "training=ok")], needs=["compile Triton"]),
    Step("rivals", 1.0, [fake("rivals", "native=ok", "triton=ok")]),
]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log to be, on a machine whose library is fine."""
    monkeypatch.setattr(library, "find", lambda **_: Found(Path("_ops.so"), ""))
    monkeypatch.setattr(check, "look_at_library", lambda machine: says("17 CUDA ops"))
    return tmp_path / "out" / "gpu-check.jsonl"


def with_items(name: str, *items: str) -> list[Step]:
    """The steps, one stage of them with other items."""

    def changed(stage: Stage) -> Stage:
        return fake(name, *items) if stage.name == name else stage

    return [replace(step, stages=[changed(stage) for stage in step.stages]) for step in STEPS]


def ended(log: Path) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in results.read(log, "stage")}


ALL = [stage.name for step in STEPS for stage in (*step.stages, *step.background)]


def test_all_is_well(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.check(H200, STEPS, log, 60.0) == 0
    assert ended(log) == dict.fromkeys([*ALL, "library"], "ok")
    first, *rows = results.read(log)
    assert (first["kind"], first["device"], first["driver"]) == ("start", "NVIDIA H200", "580.1")
    assert first["missing"] == []
    assert len({row["item"] for row in rows if row["kind"] == "finished"}) == 8
    assert "missing: nothing" in capsys.readouterr().out.splitlines()[0]
    files = sorted(log.parent.iterdir())
    assert [file.name for file in files] == ["gpu-check.jsonl", "gpu-check.txt"]


@pytest.mark.parametrize(
    ("fault", "status", "why"),
    [("hangs", "hung", "did not come back"), ("faults", "faulted", "illegal memory access")],
)
def test_a_kernel_that_hangs_or_faults(
    fault: str, status: str, why: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = with_items("native times", f"pools 16={fault}", "split 16=ok")
    assert check.check(H200, steps, log, 60.0) == 1
    assert ended(log) == {**dict.fromkeys([*ALL, "library"], "ok"), "native times": "failed"}
    found = {(row["item"], row["part"]): row["status"] for row in results.read(log, "finished")}
    assert found["pools 16", "kernel"] == status
    assert [item for (item, _), state in found.items() if state != "ok"] == ["pools 16"] * 2
    assert found["split 16", ""] == found["training", ""] == "ok"
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("failed")]
    assert "pools 16 / kernel" in line
    assert why in line


def test_a_library_without_cuda_kernels(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = says("STOP: _ops.so has 0 of 17 CUDA ops, without pool_tokens", STOP)
    monkeypatch.setattr(check, "look_at_library", lambda machine: stop)
    assert check.check(H200, STEPS, log, 60.0) == STOP
    assert ended(log) == {"library": "failed"}
    assert "0 of 17 CUDA ops, without pool_tokens" in capsys.readouterr().out.splitlines()[-1]


def test_a_missing_library_is_built_and_one_that_does_not_build_stops(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "find", lambda **_: Found(None, "there is none"))
    built = replace(says("built"), name="build")
    monkeypatch.setattr(library, "build", lambda capability, limit_s: built)
    assert check.check(H200, STEPS[1:2], log, 60.0) == 0
    assert list(ended(log)) == ["build", "library", "native times"]
    monkeypatch.setattr(library, "build", lambda capability, limit_s: replace(built, skip="there is no nvcc"))
    assert check.check(H200, STEPS[1:2], log, 60.0) == STOP
    assert ended(log) == {"build": "skipped"}
    assert "there is none, and the build: skipped, there is no nvcc" in capsys.readouterr().out


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_a_library_for_another_gpu_is_built_anew_once(
    foreign: bool, right: bool, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at it for the second time finds the one that was built, right or not."""
    mark = tmp_path / "built"
    script = (
        "import os, sys, pathlib\n"
        "from benchmarks.suite.results import Writer\n"
        "built = pathlib.Path(sys.argv[1]).exists()\n"
        f"wrong = not (built and {right})\n"
        f"row = {{'problem': 'for 8.0' if wrong else '', 'for_another_gpu': wrong and {foreign}}}\n"
        "Writer(pathlib.Path(os.environ['IFDD_LOG'])).write('library', stage='library', **row)\n"
        "print('STOP: for 8.0' if wrong else 'fine'); sys.exit(3 * wrong)\n"
    )
    look = Stage("library", (sys.executable, "-c", script, str(mark)), 20.0)
    build = Stage("build", (sys.executable, "-c", f"open({str(mark)!r}, 'w')"), 20.0)
    monkeypatch.setattr(check, "look_at_library", lambda machine: look)
    monkeypatch.setattr(library, "build", lambda capability, limit_s: build)
    assert check.check(H200, STEPS[1:2], log, 60.0) == (0 if foreign and right else STOP)
    ran = [(row["stage"], row["status"]) for row in results.read(log, "stage")]
    assert ran[0] == ("library", "failed")
    again = ("library", "ok" if right else "failed")
    more = [("native times", "ok")] if right else []
    assert ran[1:] == ([("build", "ok"), again, *more] if foreign else [])


def test_what_is_missing_is_named_in_the_first_line(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "PACKAGES", ("pytest", "no-such-package", "torch"))
    monkeypatch.setattr(host, "TOOLS", ("no-such-tool",))
    machine = host.look("cpu")
    assert machine.missing == {"no-such-package", "no-such-tool"}
    assert check.check(machine, STEPS, log, 60.0) == 0
    assert "missing: no-such-package, no-such-tool;" in capsys.readouterr().out.splitlines()[0]
    assert results.read(log)[0]["missing"] == ["no-such-package", "no-such-tool"]


def test_a_cut_at_the_budget_keeps_what_was_measured_and_is_resumed(log: Path, tmp_path: Path) -> None:
    steps = with_items("training step", "warm=ok", "training=ok:60")
    assert check.check(H200, steps, log, 8.0) == 1
    status = ended(log)
    assert status["training step"] == "timeout"
    assert status["rivals"] == "skipped"
    assert status["native times"] == status["check pools"] == "ok"
    # Another machine, where nothing is but the log of the first call; what was finished would crash now.
    later = tmp_path / "second" / "gpu-check.jsonl"
    resumed = [
        replace(step, stages=[replace(s, command=(sys.executable, FAKE, "never=exits")) for s in step.stages])
        for step in STEPS[:2]
    ] + with_items("training step", "warm=exits", "training=ok")[2:]
    assert check.check(H200, resumed, later, 60.0, resume=log) == 0
    assert later.read_bytes().startswith(log.read_bytes())
    second = [row["stage"] for row in results.read(later, "stage")][len(results.read(log, "stage")) :]
    assert sorted(second) == sorted(["library", "compile Triton", "training step", "rivals"])


def test_counters_begin_anew_after_they_were_cut(tmp_path: Path) -> None:
    """Their tables come last: what they are of has ended, and still there is nothing."""
    runner = Runner(tmp_path / "log.jsonl", tmp_path / "log.txt", 60.0, say=lambda line: None)
    for item, status in (("a=exits", "failed"), ("a=ok", "ok"), ("a=exits", "failed")):
        (stage,) = visit._counters(H200).stages
        stage = replace(stage, command=(sys.executable, FAKE, item, "b=ok"), skip="")
        assert runner.run(stage).status == status  # a runs, whether it has ended before or not


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from benchmarks.gpu import check, library
from benchmarks.gpu.host import Machine
from test_gpu_check_steps import STEPS, says
library.find = lambda **_: library.Found(Path("_ops.so"), "")
check.look_at_library = lambda machine: says("17 CUDA ops")
sys.exit(check.check(Machine(), STEPS, Path({log!r}), 60.0))
"""
STEPS_FILE = """
import sys
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.steps import Step
def says(text):
    return Stage("library", (sys.executable, "-c", f"print({text!r})"), 20.0)
def stage(name, *items):
    return Stage(name, (sys.executable, FAKE, *items), 50.0, items=True)
# Of a program that knows nothing of the check.
SLEEP = f"import os, time, pathlib; pathlib.Path({MARK!r}).write_text(str(os.getpid())); time.sleep(50)"
BESIDE = [Stage("beside", (sys.executable, "-c", SLEEP), 50.0)]
STEPS = [Step("a", 1.0, [stage("a", "quick=ok")], background=BESIDE),
         Step("b", 1.0, [stage("b", "next=ok", "long=ok:50")]),
         Step("c", 1.0, [stage("c", "never=ok")])]
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cut_off_from_outside(number: signal.Signals, tmp_path: Path) -> None:
    """The log holds all measurements, every line is readable, and no process is left running."""
    log, mark = tmp_path / "gpu-check.jsonl", tmp_path / "beside"
    (tmp_path / "test_gpu_check_steps.py").write_text(f"FAKE, MARK = {FAKE!r}, {str(mark)!r}\n{STEPS_FILE}")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path), log=str(log))],
        cwd=place.ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.perf_counter() + 60
    pid = None
    while pid is None and time.perf_counter() < deadline:
        rows = results.read(log, "started") if log.exists() else []
        pid = next((row["pid"] for row in rows if row["item"] == "long"), None)
        time.sleep(0.05)
    assert pid is not None
    while not (mark.exists() and mark.read_text()) and time.perf_counter() < deadline:
        time.sleep(0.05)
    pids = (pid, int(mark.read_text()))
    process.send_signal(number)
    assert process.wait(30) == (128 + number if number == signal.SIGTERM else -number)
    for line in log.read_bytes().splitlines():
        assert json.loads(line)["kind"] in results.KINDS
    assert {"quick": "ok", "next": "ok"}.items() <= {
        row["item"]: row["status"] for row in results.read(log, "finished")
    }.items()
    if number == signal.SIGTERM:
        cut = {"b": "cut", "c": "skipped", "beside": "cut", "check": "cut"}
        assert ended(log) == {"library": "ok", "a": "ok", **cut}
    deadline = time.perf_counter() + 10
    while any(Path(f"/proc/{one}").exists() for one in pids) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not [one for one in pids if Path(f"/proc/{one}").exists()]


def test_a_second_run_does_not_write_over_the_first(log: Path) -> None:
    check.check(H200, STEPS[1:2], log, 60.0)
    first = log.read_bytes()
    check.check(H200, STEPS[1:2], log, 60.0)
    (kept,) = [file for file in log.parent.glob("*.jsonl") if file != log]
    assert kept.read_bytes() == first


def test_the_table_counts_what_has_to_be_waited_for() -> None:
    (behind,) = STEPS[0].background
    steps = [replace(STEPS[0], background=[replace(behind, estimate_s=9.0)]), *STEPS[1:]]
    lines = table(steps, builds=False).splitlines()
    rows = [(line[:28].strip(), float(line[28:35])) for line in lines]
    # Two steps of a second are over when the training step asks for it.
    assert rows[3] == ("(waiting)", 7.0)
    assert rows[-1] == ("in all", START_S + 4 + 7)
    assert lines[3].endswith("until it is over: compile Triton")
    steps[0] = replace(steps[0], background=[replace(behind, estimate_s=900.0)])  # and stopped at its limit
    assert "(waiting)                       18 s" in table(steps, builds=False)
    steps[0] = replace(steps[0], background=[replace(behind, estimate_s=900.0, skip="needs a GPU")])
    assert "(waiting)" not in table(steps, builds=False)
    few = table(visit.first_call(replace(H200, cores=4)), builds=False)
    assert few.count("(waiting)") == 3


def test_what_compiles_is_waited_for_when_its_step_is_done(log: Path) -> None:
    """By whoever needs it, in a second call and with --only; and does not run where nobody does."""
    mark = log.parent / "compiled"
    code = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    slow = Stage("compile Triton", (sys.executable, "-c", code), 20.0)
    looks = Stage("rivals", (sys.executable, "-c", f"open({str(mark)!r})"), 20.0)
    steps = [
        replace(STEPS[0], background=[slow]),
        *STEPS[1:3],
        Step("rivals", 1.0, [looks], needs=["compile Triton"]),
    ]
    assert [step.name for step in only(steps, ["rivals"])] == ["native ops", "rivals"]
    assert check.check(H200, only(steps, ["rivals"]), log, 60.0) == 0
    assert ended(log) == {"library": "ok", "compile Triton": "ok", "rivals": "ok"}
    mark.unlink()
    for stage in (*steps[0].stages, *steps[1].stages, *steps[2].stages):
        Runner(log, log.with_suffix(".txt"), 60.0, say=lambda line: None).run(stage)
    # The training step, which waits for it too, is done; the rivals are not, for other sources.
    steps[3] = replace(steps[3], stages=[replace(looks, sources="changed")])
    assert check.check(H200, steps, log, 60.0, resume=log) == 0
    assert done(log, steps) == []
    assert only(steps, ["native times"]) == [steps[1]]
    steps[3] = replace(steps[3], stages=[replace(looks, skip="not here")])
    assert only(steps, ["rivals"]) == [steps[3]]


def test_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no step 'nothing'; there are native ops, native times,"):
        check.main(["--only", "nothing"])
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit):
        check.main(["--device", "cpu"])
    assert "--out" in capsys.readouterr().err
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("GPU_BUDGET_S", "200")
    options = check.parse([])
    assert (options.out, options.budget_s, options.resume) == (tmp_path, 200.0, None)


def test_the_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(place, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("IFDD_COMMIT", "abc1234")
    assert place.commit() == "abc1234"
    monkeypatch.delenv("IFDD_COMMIT")
    assert place.commit() == "unknown"


PYTEST_FILE = """
import ctypes, os, signal, time, pytest
pytestmark = pytest.mark.gpu
def test_a(): pass
def test_hangs(): ctypes.PyDLL(None).sleep(600)
def test_b(): pass
def test_crashes(): os.kill(os.getpid(), signal.SIGKILL)
def test_c(): pass
def test_fails(): assert 1 == 2
def test_skips(): pytest.skip("not here")
def test_d(): pass
@pytest.mark.parametrize("n", range(6))
def test_ends(n): os._exit(3)
@pytest.fixture
def turn(): time.sleep(4)
@pytest.mark.timeout(3, func_only=True)
def test_waits_and_crashes(turn): os._exit(4)
@pytest.fixture
def device():
    yield
    time.sleep(3)
    os._exit(5)
@pytest.mark.timeout(3, func_only=True)
def test_breaks_the_device(device):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


@pytest.mark.parametrize(
    "missing",
    [(), pytest.param(("pytest-xdist",), marks=pytest.mark.nightly), ("pytest-xdist", "pytest-timeout")],
)
def test_tests_that_hang_or_crash_are_named_and_passed_over(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import pytest_journal

    (tmp_path / "tests").mkdir()
    file = tmp_path / "tests" / "test_it.py"
    # Without xdist each of them is another start of pytest.
    ends = 2 if missing else 6
    content = PYTEST_FILE.replace("range(6)", f"range({ends})")
    file.write_text(content)
    command = list(visit._pytest(replace(H200, cores=1, missing=frozenset(missing))))
    if "--timeout=25" in command:
        command[command.index("--timeout=25")] = "--timeout=3"
    # Only what matters here: importing the other plugins takes longer than the tests.
    modules = {"pytest-xdist": "xdist.plugin", "pytest-timeout": "pytest_timeout"}
    plugins = [word for name, module in modules.items() if name not in missing for word in ("-p", module)]
    # The limit of a journal without pytest-timeout is a constant.
    (tmp_path / "short.py").write_text(
        "from benchmarks.gpu import pytest_journal\npytest_journal.LIMIT_S = 3.0\n"
    )
    assert pytest_journal.LIMIT_S == 25.0
    environment = {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(place.ROOT))),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    runner = Runner(tmp_path / "log.jsonl", tmp_path / "log.txt", 280.0, say=lambda line: None)
    stage = Stage("tests", (*command, "-p", "short", *plugins, str(file)), 270.0, environment, items=True)
    outcome = runner.run(stage)
    found = {row["item"].rpartition("::")[2]: row["status"] for row in results.read(runner.log, "finished")}
    # One worker, and more tests that end it than xdist puts up with by itself.
    assert [found.pop(f"test_ends[{n}]") for n in range(ends)] == ["crashed"] * ends
    breaks, waits = found.pop("test_breaks_the_device"), found.pop("test_waits_and_crashes")
    if not missing:
        assert (breaks, waits) == ("crashed", "crashed")
        (detail,) = [
            row["detail"]
            for row in results.read(runner.log, "finished")
            if row["item"].endswith("::test_breaks_the_device")
        ]
        assert detail.startswith("call: RuntimeError: CUDA error: an illegal memory access")
        assert "crashed while running" in detail
    assert {f"test_{name}" for name in ("a", "b", "c", "d", "skips")} <= {
        n for n, s in found.items() if s == "ok"
    }
    assert found["test_hangs"] == "hung", runner.text.path.read_text()
    assert found["test_crashes"] == "crashed"
    assert found["test_fails"] == "failed"
    assert outcome.status == "failed"
    assert all(f"::test_{name}: " in outcome.detail for name in ("hangs", "crashes", "fails"))
    assert "assert 1 == 2" in outcome.detail
    if not missing:
        # A second call runs what failed, mended meanwhile, and names what it passes over.
        runner.writer.write("start")
        file.write_text(content.replace("assert 1 == 2", "pass"))
        size = len(results.read(runner.log, "finished"))
        for _ in range(2):
            again = runner.run(replace(stage, accepted={5: "no test was left to run"}))
            assert again.status == "failed"
            assert again.detail.startswith("known from before: ")
            assert all(
                (f"::test_{name}: " in again.detail) == (name != "fails")
                for name in ("hangs", "crashes", "fails")
            )
        (row,) = results.read(runner.log, "finished")[size:]
        assert (row["item"].rpartition("::")[2], row["status"]) == ("test_fails", "ok")
