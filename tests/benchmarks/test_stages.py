"""Stages on a device that is not there pass, fail, hang, crash and are cut off; the rest is measured."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import stages
from benchmarks.gpu.stages import Runner, Stage
from benchmarks.suite import journal, results
from benchmarks.suite.journal import Journal
from benchmarks.suite.results import Writer

FAKE = str(Path(__file__).parent / "fake_device.py")


def fake(name: str, *plan: str, limit_s: float = 30.0, sources: str = "") -> Stage:
    """A stage of items: "a=ok", "b=hangs"."""
    return Stage(name, (sys.executable, FAKE, *plan), limit_s, items=True, sources=sources)


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(stages, "GRACE_S", 1.0)
    return Runner(tmp_path / "log.jsonl", tmp_path / "log.txt", 60.0, say=lambda line: None)


def finished(path: Path, stage: str | None = None) -> dict[str, str]:
    """Item, or item / part, and how it ended."""
    rows = results.read(path, "finished")
    return {journal.name(row): row["status"] for row in rows if stage in (None, row["stage"])}


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("hangs", "hung", "did not come back within 3 s"),
        ("deaf", "hung", "did not come back within 3 s"),
        ("crashes", "crashed", "SIGSEGV"),
        ("exits", "crashed", "exit code 7"),
        ("faults", "faulted", "illegal memory access"),
        ("fails", "failed", "wrong by 3"),
    ],
)
def test_a_faulty_kernel_costs_itself(runner: Runner, fault: str, status: str, says: str) -> None:
    outcome = runner.run(fake("ops", "pools=ok", f"split={fault}", "lifting=ok", "loss=ok"))
    found = finished(runner.log)
    assert [found[item] for item in ("pools", "lifting", "loss")] == ["ok"] * 3
    culprit = "split" if fault == "fails" else "split / kernel"
    assert found[culprit] == status
    assert outcome.status == "failed"
    assert culprit in outcome.detail
    assert says in outcome.detail
    assert "lifting" not in outcome.detail
    (row,) = results.read(runner.log, "stage")
    assert (row["stage"], row["status"]) == ("ops", "failed")


def test_several_faults_in_one_stage(runner: Runner) -> None:
    outcome = runner.run(fake("ops", "a=crashes", "b=ok", "c=faults", "d=ok", "e=exits", "f=ok"))
    found = finished(runner.log)
    assert {item for item, status in found.items() if status == "ok"} == {"b", "d", "f"}
    assert [found[f"{item} / kernel"] for item in "ace"] == ["crashed", "faulted", "crashed"]
    assert all(f"{item} / kernel" in outcome.detail for item in "ace")


def test_a_hang_shows_where_it_was(runner: Runner) -> None:
    runner.run(fake("ops", "a=hangs"))
    text = runner.text.path.read_text()
    assert "_hang" in text
    assert "[ops] running a" in text


def test_stages_do_not_take_each_other_down(runner: Runner) -> None:
    several = [
        Stage("good", python("print('fine')"), 9.0),
        Stage("bad", python("import sys; print('broken'); sys.exit(3)"), 9.0),
        Stage("none", python("import sys; sys.exit(5)"), 9.0, accepted={5: "no test was left"}),
        Stage("absent", ("/no/such/program",), 9.0),
        Stage("left out", python("print()"), 9.0, skip="ncu is not installed"),
        Stage("variables", python("import os; print(os.environ['IFDD_X'])"), 9.0, {"IFDD_X": "passed on"}),
    ]
    outcomes = runner.together(several, at_once=2)
    assert [o.status for o in outcomes] == ["ok", "failed", "ok", "failed", "skipped", "ok"]
    details = {o.name: o.detail for o in outcomes}
    assert details["good"] == "fine"
    assert "exit code 3; broken" in details["bad"]
    assert "cannot start" in details["absent"]
    assert details["none"] == "no test was left"
    assert details["left out"] == "ncu is not installed"
    assert details["variables"] == "passed on"
    assert {row["stage"] for row in results.read(runner.log, "stage")} == {stage.name for stage in several}
    assert "[bad] broken" in runner.text.path.read_text()


def test_processes_at_once_and_beside(runner: Runner) -> None:
    """A background stage and two others at a time: all begin before the first one ends."""
    wait = (
        "import sys, time, pathlib\n"
        "folder = pathlib.Path(sys.argv[1]); (folder / sys.argv[2]).touch()\n"
        "end = time.time() + 20\n"
        "while len(list(folder.iterdir())) < 3 and time.time() < end: time.sleep(0.02)\n"
        "sys.exit(time.time() >= end)\n"
    )
    folder = runner.log.parent / "begun"
    folder.mkdir()
    runner.start(Stage("beside", (*python(wait), str(folder), "c"), 30.0))
    pair = [Stage(name, (*python(wait), str(folder), name), 30.0) for name in "ab"]
    assert [outcome.status for outcome in runner.together(pair, at_once=2)] == ["ok", "ok"]
    assert [outcome.status for outcome in runner.join()] == ["ok"]


def test_a_stage_at_its_limit_is_stopped_with_its_children(runner: Runner, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.perf_counter()
    outcome = runner.run(Stage("long", python(code), 1.0))
    assert outcome.status == "timeout"
    time.sleep(max(0, 3.8 - (time.perf_counter() - begin)))
    assert not mark.exists()


def test_what_a_thread_of_a_stage_started_outlives_that_thread(runner: Runner) -> None:
    """As under ncu, which need not start its program from its main thread."""
    launcher = (
        "import subprocess, sys, threading, time\n"
        "started = []\n"
        "def start():\n"
        "    started.append(subprocess.Popen([sys.executable, *sys.argv[1:]]))\n"
        "    time.sleep(2)  # it has begun\n"
        "thread = threading.Thread(target=start)\n"
        "thread.start(); thread.join()\n"
        "sys.exit(started[0].wait())\n"
    )
    outcome = runner.run(Stage("counters", (*python(launcher), FAKE, "a=ok:4", "b=ok"), 30.0, items=True))
    assert (outcome.status, outcome.detail) == ("ok", "through")


def test_what_was_cut_is_no_culprit_and_comes_again(runner: Runner) -> None:
    plan = ("a=ok", "b=ok:20", "c=ok")
    outcome = runner.run(fake("ops", *plan, limit_s=5.0))
    assert outcome.status == "timeout"
    assert "at b / kernel" in outcome.detail
    assert finished(runner.log) == {"a": "ok", "b / kernel": "cut"}
    again = runner.run(fake("ops", "a=exits", "b=ok", "c=ok"))  # a would crash if it ran again
    assert again.status == "ok"
    assert finished(runner.log) == {"a": "ok", "b / kernel": "cut", "b": "ok", "c": "ok"}


def test_what_was_done_with_other_sources_comes_again(runner: Runner) -> None:
    assert runner.run(fake("ops", "a=ok", sources="old")).status == "ok"
    assert runner.run(fake("ops", "a=exits", sources="old")).status == "ok"
    assert runner.run(fake("ops", "a=fails", sources="new")).status == "failed"


def test_what_failed_before_comes_again_and_what_hung_does_not(runner: Runner) -> None:
    """In a second call, with the same sources: a test or a benchmark may have been mended."""
    writer = Writer(runner.log)
    writer.write("start")
    plan = ["a=ok", "b=fails", "c=hangs", "d=crashes", "e=faults", "f=fails"]
    assert runner.run(fake("ops", *plan)).status == "failed"
    # In the same call a new process passes over b too: it has failed, once is enough.
    assert sum(row["item"] == "b" for row in results.read(runner.log, "finished")) == 1
    writer.write("start")
    size = len(results.read(runner.log, "finished"))
    # Those that need not run would end the process now.
    outcome = runner.run(fake("ops", "a=exits", "b=ok", "c=ok", "d=ok", "e=ok", "f=fails"))
    again = results.read(runner.log, "finished")[size:]
    assert {row["item"]: row["status"] for row in again if not row["part"]} == {
        "b": "ok",
        "f": "failed",
        # Without the parts that were lost.
        "c": "failed",
        "d": "failed",
        "e": "failed",
    }
    assert outcome.status == "failed"


def test_what_is_known_as_bad_is_not_well_because_it_did_not_run(runner: Runner) -> None:
    writer = Writer(runner.log)
    writer.write("start")
    for item, status in {"a": "ok", "b": "hung", "c": "crashed", "d": "cut"}.items():
        journal.end(writer, "tests", item, "", status, "because", "same")
    writer.write("start")
    for code in (0, 5):
        stage = Stage("tests", python(f"raise SystemExit({code})"), 9.0, accepted={5: "no test was left"})
        outcome = runner.run(replace(stage, sources="same"))
        assert outcome.status == "failed"
        assert outcome.detail == "known from before: b: hung, because; c: crashed, because"
    assert runner.run(replace(stage, sources="mended")).status == "ok"
    for item in "bc":
        journal.end(writer, "tests", item, "", "ok", "", "same")
    assert runner.run(replace(stage, sources="same")).status == "ok"


def test_the_budget_ends_everything(runner: Runner) -> None:
    runner.budget_s = 6.0
    first, second, third = (
        runner.run(fake(name, "x=ok", f"y=ok:{seconds}")) for name, seconds in (("a", 0), ("b", 30), ("c", 0))
    )
    assert (first.status, second.status, third.status) == ("ok", "timeout", "skipped")
    assert third.detail == "the budget is used up"
    assert finished(runner.log, "a") == {"x": "ok", "y": "ok"}


def test_stopping_ends_what_runs_and_begins_nothing(runner: Runner) -> None:
    found: list[Any] = []
    several = [fake(name, f"{name}=ok:30") for name in ("a", "b", "c")]
    thread = threading.Thread(target=lambda: found.extend(runner.together(several, at_once=2)))
    thread.start()
    deadline = time.perf_counter() + 20
    while runner.log.stat().st_size == 0 if runner.log.exists() else time.perf_counter() < deadline:
        time.sleep(0.02)
    begin = time.perf_counter()
    runner.stop()
    thread.join(20)
    assert time.perf_counter() - begin < 10
    assert [outcome.status for outcome in found] == ["cut", "cut", "skipped"]


def test_a_line_that_was_cut_costs_itself(runner: Runner) -> None:
    assert runner.run(fake("ops", "a=ok", "b=ok")).status == "ok"
    whole = runner.log.read_bytes()
    runner.log.write_bytes(whole[: whole.rindex(b'"finished"') + 30])  # in the middle of b's last row
    again = Runner(runner.log, runner.text.path, 60.0, say=lambda line: None)
    assert again.run(fake("ops", "a=exits", "b=ok")).status == "ok"
    assert all(json.loads(line) for line in runner.log.read_bytes().splitlines()[-2:])
    assert finished(runner.log) == {"a": "ok", "b": "ok"}


def test_rows_of_many_processes_do_not_mix(runner: Runner) -> None:
    several = [fake(f"s{n}", *(f"item {n} {k} {'x' * 200}=ok" for k in range(20))) for n in range(6)]
    assert {outcome.status for outcome in runner.together(several, at_once=6)} == {"ok"}
    lines = runner.log.read_bytes().splitlines()
    assert len(lines) == 6 * (2 * 20 + 1)
    assert all(json.loads(line)["kind"] in results.KINDS for line in lines)


def test_the_text_has_room_for_all(tmp_path: Path) -> None:
    text = stages.Text(tmp_path / "log.txt", most=2000)
    runner = Runner(tmp_path / "log.jsonl", tmp_path / "log.txt", 60.0, say=lambda line: None)
    runner.text = text
    runner.run(Stage("loud", python("for n in range(20000): print('line', n)"), 20.0))
    written = text.path.read_text()
    assert len(written) < 8000
    assert "[loud] line 0\n" in written
    assert written.endswith("[loud] line 19999\n")
    assert "left out" in written


def test_overdue_is_what_runs_beyond_its_limit(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    tail, own = journal.Tail(log, "s"), Journal(log, "s")
    try:
        own.start("a", limit_s=1000)
        tail.update()
        assert not tail.overdue(0)
        assert tail.overdue(-1001)
        assert journal.seconds_since(tail.running["a"]) < 60
    finally:
        own.finish("a")
    tail.update()
    assert not tail.overdue(-1001)


def test_a_line_in_the_making_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    Journal(log, "s").start("a")
    whole = log.read_bytes()
    log.write_bytes(whole[:40])
    tail = journal.Tail(log, "s")
    tail._place = 0
    tail.update()
    assert not tail.running
    log.write_bytes(whole)
    tail.update()
    assert list(tail.running) == ["a"]


def test_nothing_is_known_outside_of_a_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(journal.LOG, raising=False)
    monkeypatch.chdir(tmp_path)
    outside = Journal.of_process()
    outside.start("a", limit_s=0.01)
    outside.finish("a")
    assert outside.finished() == set()
    assert outside.facts is None
    assert not os.listdir(tmp_path)  # noqa: PTH208


def test_an_item_says_how_it_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    Writer(log).write("library", facts={"device": "imagined"})
    own = Journal(log, "s")
    assert own.facts == {"device": "imagined"}
    with own.item("good"):
        pass
    with pytest.raises(ValueError, match="wrong"), own.item("bad"):
        raise ValueError("wrong")
    assert finished(log) == {"good": "ok", "bad": "failed"}
    assert Journal(log, "s").finished() == {"good", "bad"}
    assert Journal(log, "another").finished() == set()
