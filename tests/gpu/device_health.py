"""A device that a test has broken must not fail the tests after it.

After an illegal access every call of the process raises, whatever it does. The process ends with the test
that caused it: pytest-xdist names that test, starts another process and goes on; without pytest-xdist the
session ends and says why.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import pytest

BROKEN = 3
"""Exit status of a process that left for a broken device."""


def synchronize() -> None:
    """Waits for the device, if this process has used one; raises what went wrong there."""
    import torch  # slow, and not needed where this function is exchanged in tests

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def failure(wait: Callable[[], None]) -> tuple[str, bool]:
    """The error that a device reports after a test (empty: none), and whether it keeps reporting it.

    An error that is gone when asked again belongs to one call: the device is sound.
    """
    try:
        wait()
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
    else:
        return "", False
    try:
        wait()
    except RuntimeError:
        return first, True
    return first, False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Asks the device after each test, when its report is already out."""
    try:
        yield
    finally:
        message, lasting = failure(synchronize)
        if lasting:
            _leave(item, message)
        elif message:
            pytest.fail(f"the device reports after {item.nodeid}: {message}", pytrace=False)


def _leave(item: pytest.Item, message: str) -> None:
    said = f"{item.nodeid} left the device broken ({message}): no later test of this process could run"
    if not hasattr(item.config, "workerinput"):
        pytest.exit(said, returncode=BROKEN)
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print(f"\n{said}", file=sys.stderr, flush=True)
    os._exit(BROKEN)
