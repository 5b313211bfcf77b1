"""Inputs read ahead in threads: in order, bounded, and no failure leaves anyone waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from functools import partial

import pytest

from ifdd.lookahead import Ended, Lookahead

Source = Callable[[], Generator[int, None, str]]


def numbers(begin: int, count: int, log: list[int] | None = None) -> Generator[int, None, str]:
    for value in range(begin, begin + count):
        if log is not None:
            log.append(value)
        yield value
    return f"{count} from {begin}"


def failing(count: int) -> Generator[int, None, str]:
    yield from range(count)
    raise MemoryError("no room")


def collect(lookahead: Lookahead[int, str], count: int) -> list[list[int | Ended[str]]]:
    return [list(lookahead.items(number)) for number in range(count)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_and_then_the_result(workers: int) -> None:
    sources: list[Source] = [partial(numbers, 100 * i, i % 5) for i in range(40)]
    with Lookahead(sources, workers, room=3, ahead=4) as lookahead:
        for number, items in enumerate(collect(lookahead, 40)):
            assert items[:-1] == list(range(100 * number, 100 * number + number % 5))
            assert items[-1] == Ended(f"{number % 5} from {100 * number}")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_ends_one_input_and_no_other(workers: int) -> None:
    sources: list[Source] = [partial(failing, 2), partial(numbers, 5, 1), partial(failing, 0)]
    with Lookahead(sources, workers, room=2, ahead=2) as lookahead:
        first, second, third = collect(lookahead, 3)
    assert first[:2] == [0, 1]
    for ended in (first[2], third[0]):
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, MemoryError)
    assert second == [5, Ended("1 from 5")]


def test_no_more_than_the_room_is_read_ahead() -> None:
    logs: list[list[int]] = [[] for _ in range(6)]
    sources: list[Source] = [partial(numbers, 0, 1000, log) for log in logs]
    with Lookahead(sources, workers=2, room=5, ahead=3) as lookahead:
        items = lookahead.items(0)
        next(items)
        time.sleep(0.1)
        # The head has a room of its own, the other input what is left of the common one; each thread has one
        # more item in its hands.
        assert len(logs[0]) <= 1 + 5 + 5 + 1
        assert len(logs[0]) + len(logs[1]) <= 1 + 2 * 5 + 2
        assert logs[2:] == [[], [], [], []]
        assert len(list(items)) == 1000


def test_a_caller_that_stops_early_ends_the_input_and_its_room_is_free_again() -> None:
    closed = threading.Event()

    def endless() -> Generator[int, None, str]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    sources: list[Source] = [endless, partial(numbers, 0, 50), endless, partial(numbers, 7, 1)]
    with Lookahead(sources, workers=2, room=4, ahead=4) as lookahead:
        for number, count in ((0, 3), (1, 51), (2, 1), (3, 2)):
            items = lookahead.items(number)
            for _ in range(count):
                next(items)
            items.close()
        assert closed.wait(5)
    assert not any(thread.is_alive() for thread in lookahead._threads)


def test_leaving_ends_the_threads_even_if_they_wait_for_room() -> None:
    sources: list[Source] = [partial(numbers, 0, 10**9) for _ in range(4)]
    before = time.monotonic()
    lookahead = Lookahead(sources, workers=3, room=2, ahead=9)
    with lookahead:
        next(lookahead.items(0))
    assert time.monotonic() - before < 2
    assert not any(thread.is_alive() for thread in lookahead._threads)
