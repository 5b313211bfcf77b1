"""A plugin for pytest (``-p benchmarks.gpu.pytest_journal``): every test is an item of the stage's journal.

Tests that the log already has are deselected, so that a run which was cut off goes on. A test that hangs is
ended by pytest-timeout together with its worker; the worker's successor takes the rest, and the test is
named. A timer of C does the same where a test does not even let go of Python's lock. Without xdist it is all
of pytest that ends, and the check starts it again.
"""

from __future__ import annotations

import faulthandler
import os
import time
from typing import Any

import pytest

from benchmarks.suite.journal import Journal

LIMIT_S = 25.0
#: Seconds until its body begins: tests of large batches wait for each other's memory.
SETUP_S = 260.0
"""Of a test, where pytest-timeout does not say."""
_STDERR = os.dup(2)
"""Standard error before pytest captures it."""


class Plugin:
    """One session's journal. Under xdist only the controller writes; workers deselect, all the same tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._journal = Journal.of_process()
        self._journal.stacks = _STDERR
        self._writes = "PYTEST_XDIST_WORKER" not in os.environ
        # Under xdist the controller has no test to wait for, and the timer would end it.
        self._hung_s = float(config.getoption("timeout", None) or LIMIT_S)
        self._limit = None if config.getoption("numprocesses", None) else self._hung_s
        #: When a test began, and its body; and how its phases failed.
        self._begun: dict[str, float] = {}
        self._bodies: dict[str, float] = {}
        self._reasons: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves out what the log has."""
        done = self._journal.finished()
        left_out = [item for item in items if item.nodeid in done]
        if left_out:
            items[:] = [item for item in items if item.nodeid not in done]
            config.hook.pytest_deselected(items=left_out)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, here or in a worker."""
        if self._writes:
            self._begun[nodeid] = time.monotonic()
            self._journal.start(nodeid, limit_s=self._limit)
        else:
            self._journal.guard(SETUP_S)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        """Its body begins: fixtures may have waited for the device's memory."""
        if not self._writes:
            self._journal.guard(self._hung_s + 1)  # after pytest-timeout, which says more

    def pytest_runtest_logfinish(self) -> None:
        """A test is over."""
        if not self._writes:
            faulthandler.cancel_dump_traceback_later()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test ended; xdist reports the death of a worker as a phase of its own."""
        if not self._writes:
            return
        if report.failed:
            text = str(report.longrepr).strip()
            if report.when not in ("setup", "call", "teardown"):
                self._journal.finish(report.nodeid, *self._lost(report.nodeid, text.splitlines()[-1]))
                return
            self._reasons[report.nodeid] = _reason(report, text)
        elif report.when == "setup":
            self._bodies[report.nodeid] = time.monotonic()
        if report.when == "teardown":
            reason = self._reasons.pop(report.nodeid, "")
            self._journal.finish(report.nodeid, "failed" if reason else "ok", reason)

    def _lost(self, nodeid: str, said: str) -> tuple[str, str]:
        """Status and detail of a test whose worker is gone."""
        now = time.monotonic()
        reason = self._reasons.pop(nodeid, "")
        body = nodeid in self._bodies
        since, limit = (
            (self._bodies[nodeid], self._hung_s) if body else (self._begun.get(nodeid, now), SETUP_S)
        )
        seconds = now - since
        # One that has failed came back: it left the device broken, and its worker ended for that.
        status = "hung" if not reason and seconds > 0.9 * limit else "crashed"
        where = "" if body else " of setting up"
        return status, "; ".join(filter(None, (reason, f"{said} ({seconds:.0f} s{where})")))


def _reason(report: Any, text: str) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else text
    return f"{report.when}: " + " ".join(message.split())[:400]


def pytest_configure(config: pytest.Config) -> None:
    """Registers the plugin of this session, with its state."""
    config.pluginmanager.register(Plugin(config), "ifdd-journal")
