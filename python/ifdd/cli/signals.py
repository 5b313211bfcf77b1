"""Commands that end in order when they are stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """SIGTERM ends the command in order, as Ctrl-C does; yields what must be called now and then.

    A signal's exception is raised wherever the main thread happens to be. Where that is a destructor or a
    callback from C, Python prints it and goes on: then the next call raises it again.
    """
    stops: list[BaseException] = []

    def end(number: int, frame: FrameType | None) -> None:
        stops.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
        raise stops[-1]

    def check() -> None:
        if stops:
            raise stops[-1]

    before = {}
    try:
        # A process in the background may have been told to ignore Ctrl-C: it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, end)
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread: whoever runs this one decides
        yield check
        return
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
