"""Several inputs read in threads of their own while the caller works on what they gave before.

Decoders release Python's lock for most of their time, so that threads suffice: they share memory with the
network, and no process can be killed and leave the others waiting.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Source = Callable[[], Generator[Item, None, Result]]
"""Begins one input: yields its items, returns its result."""


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """The last that comes of an input: its result, or the error that ended it."""

    result: Result | None = None
    error: Exception | None = None


def run(source: Source[Item, Result]) -> Generator[Item | Ended[Result], None, None]:
    """The items of one input, then how it ended; errors of the input do not pass through."""
    try:
        result = yield from source()
    except Exception as error:
        yield Ended(error=error)
    else:
        yield Ended(result)


class Lookahead(Generic[Item, Result]):
    """Reads inputs in order, some of them ahead; a context manager.

    Args:
        sources: the inputs.
        workers: threads; 0 reads in the caller's.
        room: items held at most; the input that the caller waits for may hold as many again.
        ahead: inputs begun at most beyond the one that the caller waits for.
    """

    def __init__(self, sources: Sequence[Source[Item, Result]], workers: int, room: int, ahead: int) -> None:
        self._sources = sources
        self._room = max(1, room)
        self._ahead = ahead
        self._change = threading.Condition()
        self._lines: dict[int, deque[Item | Ended[Result]]] = {}
        self._next = 0
        self._head = 0
        self._held = 0
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"reader {number}", daemon=True)
            for number in range(min(workers, len(sources)))
        ]

    def __enter__(self) -> Lookahead[Item, Result]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._change:
            self._stopped = True
            self._change.notify_all()
        for thread in self._threads:
            # A thread inside a slow decoder call must not hold up the end of the program; it is a daemon.
            thread.join(timeout=0.5)

    def items(self, number: int) -> Generator[Item | Ended[Result], None, None]:
        """The items of input `number`; to be called for each input in turn. A caller that stops early ends
        the input.
        """
        if not self._threads:
            yield from run(self._sources[number])
            return
        with self._change:
            self._head = number
            self._lines.setdefault(number, deque())
            self._change.notify_all()
        try:
            while True:
                item = self._take(number)
                yield item
                if isinstance(item, Ended):
                    return
        finally:
            with self._change:
                self._head = number + 1
                self._held -= len(self._lines.pop(number))
                self._change.notify_all()

    def _take(self, number: int) -> Item | Ended[Result]:
        with self._change:
            line = self._lines[number]
            while not line:
                self._change.wait()
            self._held -= 1
            self._change.notify_all()
            return line.popleft()

    def _work(self) -> None:
        while True:
            with self._change:
                while (
                    not self._stopped
                    and self._next < len(self._sources)
                    and self._next > self._head + self._ahead
                ):
                    self._change.wait()
                if self._stopped or self._next >= len(self._sources):
                    return
                number = self._next
                self._next += 1
                if number < self._head:
                    continue  # the caller has done without it
                self._lines.setdefault(number, deque())
            source = run(self._sources[number])
            for item in source:
                if not self._put(number, item):
                    source.close()
                    break

    def _put(self, number: int, item: Item | Ended[Result]) -> bool:
        """Waits for room; False if nobody will take the item."""
        with self._change:
            while True:
                if self._stopped or number not in self._lines:
                    return False
                line = self._lines[number]
                # The input that the caller waits for always moves: it may fill a room of its own.
                if (
                    isinstance(item, Ended)
                    or self._held < self._room
                    or (number == self._head and len(line) < self._room)
                ):
                    break
                self._change.wait()
            line.append(item)
            self._held += 1
            self._change.notify_all()
            return True
