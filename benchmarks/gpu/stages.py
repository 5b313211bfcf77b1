"""Stages of the GPU check: processes with a limit, whose hangs and crashes cost what they ran and no more.

A stage is one process. It writes what it is at into the common log (:mod:`benchmarks.suite.journal`), so
that the one who watches it knows which item hung or crashed, says so, and starts the process again for the
rest.
Everything that stages print goes into one text file, each line behind the name of its stage.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.suite import journal
from benchmarks.suite.journal import DEVICE_LOST, Tail
from benchmarks.suite.place import ROOT
from benchmarks.suite.results import Row, Writer

GRACE_S = 2.0
"""Seconds between asking a process to end and ending it, and that an overdue one is given to end itself."""
POLL_S = 0.1
WITH_PARENT = (sys.executable, "-IS", str(Path(__file__).with_name("with_parent.py")))
"""Before the command of a process: it ends with the check. The thread that starts it waits for it."""


@dataclass(frozen=True)
class Stage:
    """One process, and the seconds it may take at most."""

    name: str
    command: Sequence[str]
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Why it is left out; empty if it runs.
    skip: str = ""
    #: Exit codes that do not mean failure, and their meaning.
    accepted: Mapping[int, str] = field(default_factory=dict)
    #: Whether it keeps a journal: then it is started again after an item that hung or crashed.
    items: bool = False
    #: Digest of the sources it depends on: with the same one, what is done is done.
    sources: str = ""
    #: Seconds it is expected to take, of one that runs beside others.
    estimate_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "ok", "failed", "timeout" (its limit), "cut" (the whole check) or "skipped"."""

    name: str
    status: str
    seconds: float
    detail: str


class Text:
    """One file for what all stages print: complete lines, each stage at most ``most`` bytes and its end."""

    def __init__(self, path: Path, most: int = 400_000, whole: int = 8_000_000) -> None:
        self.path, self.most, self._left = path, most, whole
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def follow(self, name: str, source: IO[bytes]) -> deque[str]:
        """Copies a stream until it ends; the last lines, also those beyond what a stage may write."""
        last: deque[str] = deque(maxlen=40)
        left, dropped = self.most, 0
        # Of bounded length: a progress bar may never end its line.
        for raw in iter(lambda: source.readline(2000), b""):
            line = raw.decode(errors="replace").rstrip()
            if line:
                last.append(line)
            if left < 0:
                dropped += 1
            else:
                left -= len(raw)
                self.write(name, line)
        if dropped:
            self.write(name, f"... more lines than the file has room for; {dropped} left out, the last:")
            for line in last:
                self.write(name, line)
        return last

    def write(self, name: str, line: str) -> None:
        """Appends a line as long as there is room."""
        data = f"[{name}] {line}\n".encode()
        with self._lock:
            if self._left >= 0:
                self._left -= len(data)
                with self.path.open("ab", buffering=0) as file:
                    file.write(data)


class Runner:
    """Runs stages within a budget and writes a row for each."""

    def __init__(self, log: Path, text: Path, budget_s: float, say: Callable[[str], None] = print) -> None:
        self.log, self.budget_s, self.say = log, budget_s, say
        self.writer, self.text = Writer(log), Text(text)
        self.begin = time.perf_counter()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        # The handler of a signal, too, looks through the processes.
        self._lock = threading.RLock()
        self._background: list[tuple[Stage, threading.Thread, list[Outcome]]] = []

    @property
    def left(self) -> float:
        """Seconds until the budget ends."""
        return self.budget_s - (time.perf_counter() - self.begin)

    def run(self, stage: Stage) -> Outcome:
        """Runs one stage to its end; never raises because of it."""
        begin = time.perf_counter()
        if stage.skip:
            outcome = Outcome(stage.name, "skipped", 0.0, stage.skip)
        elif self.stopped:
            outcome = Outcome(stage.name, "skipped", 0.0, "the check was stopped")
        elif self.left < 1:
            outcome = Outcome(stage.name, "skipped", 0.0, "the budget is used up")
        else:
            limit = min(stage.limit_s, self.left)
            self.say(f"--- {stage.name} (at most {limit:.0f} s): {' '.join(stage.command)}")
            status, detail = self._attempts(stage, begin + limit)
            outcome = Outcome(stage.name, status, time.perf_counter() - begin, detail)
        mark = {"ok": "---", "skipped": "---"}.get(outcome.status, "!!!")
        self.say(f"{mark} {stage.name}: {outcome.status} after {outcome.seconds:.0f} s. {outcome.detail}")
        self.writer.write(
            "stage", stage=stage.name, status=outcome.status, seconds=outcome.seconds,
            detail=outcome.detail[:2000], sources=stage.sources,
        )  # fmt: skip
        return outcome

    def together(self, stages: Sequence[Stage], at_once: int) -> list[Outcome]:
        """Runs several stages, so many at a time; their outcomes in the order of the stages."""
        waiting, found = deque(enumerate(stages)), dict[int, Outcome]()

        def work() -> None:
            while True:
                try:
                    place, stage = waiting.popleft()
                except IndexError:
                    return
                found[place] = self.run(stage)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(stages)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[place] for place in sorted(found)]

    def start(self, stage: Stage) -> None:
        """Runs a stage beside those that follow."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.run(stage)), daemon=True)
        thread.start()
        self._background.append((stage, thread, outcomes))

    def join(self, names: Collection[str] | None = None) -> list[Outcome]:
        """Waits for what :meth:`start` started, or for these of it; each until its limit at the latest."""
        found: list[Outcome] = []
        for one in list(self._background):
            stage, thread, outcomes = one
            if names is None or stage.name in names:
                thread.join()
                found += outcomes
                self._background.remove(one)
        return found

    def stop(self) -> None:
        """Ends everything that runs; no stage begins after that. Good for a handler of signals."""
        self.stopped = True
        with self._lock:
            processes = list(self._processes)
        for process in processes:
            _end(process, polite=False)

    def _attempts(self, stage: Stage, deadline: float) -> tuple[str, str]:
        """Runs the process until nothing of it is left to do: again after each item that it was lost at."""
        tail = Tail(self.log, stage.name)
        while True:
            count = tail.count
            code, how, last = self._execute(stage, deadline, tail)
            tail.update()
            if how in ("limit", "stopped"):
                running = [journal.name(row) for row in tail.running.values()]
                for row in tail.running.values():
                    self._finish(row, "cut", "the stage was stopped while it ran")
                at = f" at {', '.join(running)}" if running else ""
                problems = "".join(f"; {text}" for text in tail.wrong)
                if how == "stopped":
                    return "cut", f"the check was stopped{at}{problems}"
                return "timeout", f"stopped at its limit{at}{problems}"
            if code == 0 or code in stage.accepted:
                if tail.wrong:
                    return "failed", "; ".join(tail.wrong)
                # Of an earlier call, passed over in this one.
                known = journal.bad(self.log, stage.name, stage.sources)
                if known:
                    return "failed", f"known from before: {'; '.join(known)}"
                return "ok", stage.accepted.get(code, "") or last
            lost = code == DEVICE_LOST or bool(tail.running)
            for row in list(tail.running.values()):
                self._finish(row, *_verdict(row, code, how))
            tail.update()
            # Every new start has one item less to do, so this ends.
            if not (stage.items and lost and tail.count > count):
                own = "" if tail.wrong else f"; {last}"
                return "failed", "; ".join([f"{_ending(code)}{own}", *tail.wrong])
            self.say(f"!!! {stage.name}: {tail.wrong[-1]}; going on with the rest")

    def _finish(self, row: Row, status: str, detail: str) -> None:
        journal.end(
            self.writer, row["stage"], row["item"], row["part"], status, detail, row.get("sources", "")
        )

    def _execute(self, stage: Stage, deadline: float, tail: Tail) -> tuple[int, str, str]:
        """Exit code, how it came to that ("", "limit", "hung", "stopped") and the last line of the output."""
        size = self.log.stat().st_size if self.log.exists() else 0
        # Absolute: a stage may start processes in other folders.
        paths = (str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", ""))
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            journal.LOG: str(self.log.resolve()),
            journal.STAGE: stage.name,
            journal.SOURCES: stage.sources,
            journal.END: str(size),
            **stage.environment,
        }
        try:
            with self._lock:
                if self.stopped:
                    return 0, "stopped", ""
                # A session of its own, so that what the stage started ends with it.
                process = subprocess.Popen(
                    [*WITH_PARENT, *stage.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self._processes.add(process)
        except OSError as error:
            return 127, "", f"cannot start: {error}"
        assert process.stdout is not None
        source, lines = process.stdout, list[str]()
        reader = threading.Thread(
            target=lambda: lines.extend(self.text.follow(stage.name, source)), daemon=True
        )
        reader.start()
        how = self._watch(process, deadline, tail)
        _end(process, polite=False)  # what it left behind
        with self._lock:
            self._processes.discard(process)
        reader.join(GRACE_S)
        last = lines[-1].strip()[:200] if lines else ""
        return (process.returncode if process.returncode is not None else -signal.SIGKILL), how, last

    def _watch(self, process: subprocess.Popen[bytes], deadline: float, tail: Tail) -> str:
        while True:
            try:
                process.wait(POLL_S)
                return "stopped" if self.stopped else ""
            except subprocess.TimeoutExpired:
                tail.update()
            if time.perf_counter() > deadline:
                _end(process, polite=True)
                return "limit"
            if tail.overdue(GRACE_S):
                _end(process, polite=False)
                return "hung"


def _end(process: subprocess.Popen[bytes], polite: bool) -> None:
    """Ends a process and all it started. One that the system cannot end is left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL) if polite else (signal.SIGKILL,):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _verdict(row: Row, code: int, how: str) -> tuple[str, str]:
    """Status and detail of an item whose process is gone."""
    seconds, limit = journal.seconds_since(row), row["limit_s"]
    # The code is that of faulthandler's timer and of pytest-timeout.
    if how == "hung" or (code == 1 and limit is not None and seconds > 0.95 * limit):
        return "hung", f"did not come back within {limit:g} s"
    return "crashed", f"the process ended ({_ending(code)}) after {seconds:.1f} s"


def _ending(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"
