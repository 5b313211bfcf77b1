"""Work in several processes; one that dies or takes too long names what it was at and is replaced."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

#: Seconds one piece of work may take before it counts as hung.
LIMIT_S = 120.0


@dataclass
class Result:
    """The outcome of one: the result of its process, or the error."""

    name: str
    seconds: float
    value: Any
    problem: str = ""


class _Worker:
    """A process that runs tasks, one at a time."""

    def __init__(self, work: Callable[[int], Any]) -> None:
        context = multiprocessing.get_context("fork")  # has imported what this process has
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.process.start()
        theirs.close()
        self.at: int | None = None
        self.since = 0.0

    def give(self, number: int) -> None:
        """Starts a piece of work."""
        self.at, self.since = number, time.perf_counter()
        self.pipe.send(number)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, work: Callable[[int], Any]) -> None:
    while True:
        try:
            number = pipe.recv()
        except EOFError:  # the parent has gone
            return
        try:
            pipe.send((work(number), ""))
        except Exception:
            pipe.send((None, traceback.format_exc(limit=-3)))


def in_processes(
    names: Sequence[str],
    work: Callable[[int], Any],
    jobs: int,
    limit_s: float = LIMIT_S,
    say: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Calls ``work(i)`` for every name in ``jobs`` processes; results in the order of the names.

    A process that dies or is longer at one than ``limit_s`` is replaced, and its result names the problem.
    """
    waiting = list(range(len(names)))[::-1]
    workers = [_Worker(work) for _ in range(min(jobs, len(names)))]
    results: dict[int, Result] = {}

    def note(worker: _Worker, value: Any, problem: str) -> None:
        assert worker.at is not None
        result = Result(names[worker.at], time.perf_counter() - worker.since, value, problem)
        results[worker.at] = result
        worker.at = None
        say(result)

    try:
        while waiting or any(worker.at is not None for worker in workers):
            for worker in workers:
                if worker.at is None and waiting:
                    worker.give(waiting.pop())
            busy = [worker for worker in workers if worker.at is not None]
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for place, worker in enumerate(workers):
                if worker.at is None:
                    continue
                if worker.pipe in ready:
                    try:
                        note(worker, *worker.pipe.recv())
                        continue
                    except EOFError:
                        worker.process.join()
                        problem = f"its process died, exit code {worker.process.exitcode}"
                elif time.perf_counter() - worker.since > limit_s:
                    problem = f"not done within {limit_s:.0f} s"
                else:
                    continue
                note(worker, None, problem)
                worker.end()
                workers[place] = _Worker(work)
    finally:
        for worker in workers:
            worker.end()
    return [results[number] for number in range(len(names))]
