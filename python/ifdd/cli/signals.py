"""Commands that end in order when they are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ifdd._interrupt import on_interrupt
from ifdd.cli._commands import EXIT_TERMINATED

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """SIGTERM ends the command in order, as Ctrl-C does; yields what must be called now and then.

    A signal's exception is raised wherever the main thread happens to be. Where that is a destructor or a
    callback from C, Python prints it and goes on: then the next call raises it again. Where it is a long
    computation, the exception waits for its end: one line says at once that the signal was heard.
    """
    stops: list[BaseException] = []

    def end(number: int, frame: FrameType | None) -> None:
        stops.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(EXIT_TERMINATED))
        raise stops[-1]

    def check() -> None:
        if stops:
            raise stops[-1]

    before = {}
    try:
        # A process in the background may have been told to ignore Ctrl-C: it stays so.
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, on_interrupt):
            before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread: whoever runs this one decides
        yield check
        return
    try:
        with _answering():
            yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _answering() -> Iterator[None]:
    """Prints a line as soon as a signal arrives, while the main thread computes outside of Python."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def answer() -> None:
        while numbers := heard.recv(1):
            if (name := _NAMES.get(numbers[0])) is not None:  # type: ignore[call-overload]
                print(f"ifdd: {name}: stopping as soon as the step under way is done", file=sys.stderr)
                return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.shutdown(socket.SHUT_WR)
        thread.join()
        heard.close()
        told.close()


def _deaf_child() -> None:
    """A signal to a forked process, such as one that reads videos, is none to the command."""
    with contextlib.suppress(ValueError):  # not forked by the main thread
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf_child)
