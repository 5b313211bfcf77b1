"""A device that is not there: a stage's process whose items do what their names' endings say.

``python fake_device.py a=ok b=hangs c=ok``. Imports no torch: dozens of them run in a test.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time

from benchmarks.suite.journal import Journal

LIMIT_S = 3.0
"""Of an item that does something else than well; on a busy machine that takes a while."""


class Device:
    """Answers until a kernel has faulted; then every call of the process is an error, as under CUDA."""

    def __init__(self) -> None:
        self.lost = False

    def run(self, what: str) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        kind, _, seconds = what.partition(":")
        if kind == "ok":
            time.sleep(float(seconds or 0))
        elif kind == "fails":
            raise ValueError("wrong by 3")
        elif kind == "hangs":
            _hang()
        elif kind == "deaf":  # not even the process's own timer ends it
            faulthandler.cancel_dump_traceback_later()
            _hang()
        elif kind == "crashes":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        elif kind == "exits":
            os._exit(7)
        elif kind == "faults":
            self.lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        else:
            raise AssertionError(what)


def _hang() -> None:
    """In C, with Python's lock held and signals blocked: nothing of Python can interrupt it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(600)


def main(plan: list[str]) -> int:
    journal, device, failures = Journal.of_process(), Device(), 0
    for entry in plan:
        item, _, what = entry.partition("=")
        if item in journal.finished():
            continue
        print("running", item, flush=True)
        journal.start(item, "kernel", LIMIT_S if what.partition(":")[0] != "ok" else 30.0)
        if "kernel" in journal.lost(item):
            journal.finish(item, "failed", "its kernel was lost before")
            failures += 1
            continue
        try:
            device.run(what)
        except (RuntimeError, ValueError) as error:
            failures += 1
            if device.lost:
                journal.leave(item, "kernel", str(error))
            journal.finish(item, "failed", str(error))
        else:
            journal.finish(item)
    print("through")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
