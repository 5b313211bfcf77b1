"""The ranks of a training know of each other's end: where one dies, none waits for it.

A rank that is gone leaves the others in a collective operation: gloo notices within moments, NCCL after its
time limit of many minutes. Here each rank keeps a connection to the first, which the system closes with the
process, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, cast

GRACE = 15.0
"""Seconds that a process has to end by itself once another one is lost, before it is ended."""
SAME_ERROR = 2.0
"""Seconds that a rank waits before it reports an error which the first one may be just about to raise."""

Address = tuple[str, int]


def say_error(text: str) -> None:
    """Prints a line as the commands print errors, at once."""
    print(f"ifdd: error: {text}", file=sys.stderr, flush=True)


class Peers:
    """The connections of one rank.

    The first rank listens (:meth:`listen`), the others connect (:meth:`connect`). When a rank is lost, or
    reports an error, the first one says so once, and every process that has not left ``grace`` seconds later
    is ended with exit code 1.

    Args:
        rank: of this process.
        ranks: number of processes.
        say: receives the line about a lost rank, on the first rank.
        grace: seconds between the loss and the end of this process.
    """

    def __init__(
        self, rank: int, ranks: int, say: Callable[[str], object] = say_error, grace: float = GRACE
    ) -> None:
        self.rank = rank
        self.ranks = ranks
        self.say = say
        self.grace = grace
        self.lost: str | None = None
        self._noticed = threading.Event()
        self._leaving = threading.Event()
        self._connections: dict[int, Connection] = {}

    def listen(self, host: str) -> tuple[Address, bytes]:
        """Opens the first rank's end and watches who connects; returns address and key for the others."""
        key = secrets.token_bytes(32)
        everywhere = "127.0.0.1" if host in ("127.0.0.1", "localhost") else ""
        listener = Listener((everywhere, 0), backlog=self.ranks, authkey=key)
        threading.Thread(target=self._watch_others, args=(listener,), daemon=True).start()
        return (host, cast("Address", listener.address)[1]), key

    def connect(self, address: Address, key: bytes) -> None:
        """Connects to the first rank, then watches it."""
        connection = Client(address, authkey=key)
        _prepare(connection)
        connection.send(self.rank)
        self._connections[0] = connection
        threading.Thread(target=self._watch_first, daemon=True).start()

    def leave(self) -> None:
        """The end of others is no longer a loss."""
        self._leaving.set()

    def done(self) -> None:
        """Leaves in peace."""
        self.leave()
        for connection in list(self._connections.values()):
            with contextlib.suppress(OSError):
                connection.send(None)

    def fail(self, text: str) -> None:
        """Leaves with an error: the first rank shows that of another one, its own is its caller's to show.

        Nothing is reported where the first rank ends within moments: it has the same error.
        """
        if self.rank and not self.is_lost(SAME_ERROR):
            with contextlib.suppress(OSError):
                self._connections[0].send(text)
            # Until the first rank has said it this process stays: the end of its part of the collectives
            # would reach the others as an error of their own.
            self._noticed.wait(self.grace)
        self.vanish()

    def vanish(self) -> None:
        """Leaves like a process that dies: the others end, too."""
        self.leave()
        for connection in list(self._connections.values()):
            _hang_up(connection)

    def is_lost(self, seconds: float) -> bool:
        """Whether another rank is gone, or turns out to be within so many seconds."""
        return self._noticed.wait(seconds)

    def _watch_others(self, listener: Listener) -> None:
        left: dict[Any, int] = {}
        while len(self._connections) < self.ranks - 1:
            try:
                connection = listener.accept()
                _prepare(connection)
                left[connection] = connection.recv()
            except (OSError, EOFError, AuthenticationError):
                continue  # nobody of this training
            self._connections[left[connection]] = connection
        listener.close()
        while left:
            for ready in wait(list(left)):
                rank = left.pop(ready)
                text = _last_words(self._connections[rank])
                if text is not None and not self._leaving.is_set():
                    died = f"rank {rank} of {self.ranks} ended unexpectedly (killed, or out of memory)"
                    self._lose(f"{text or died}; all ranks stop")
                    return

    def _watch_first(self) -> None:
        if _last_words(self._connections[0]) is not None and not self._leaving.is_set():
            self._lose("the first rank ended")

    def _lose(self, text: str) -> None:
        """Says it, lets the main thread leave, and ends the process where that hangs in a collective."""
        self.lost = text
        if self.rank == 0:
            self.say(text)
        self._noticed.set()
        for connection in self._connections.values():
            _hang_up(connection)
        if not self._leaving.wait(self.grace):
            os._exit(1)


def _last_words(connection: Connection) -> str | None:
    """How a rank ended: its error, "" if it died, None if it finished."""
    try:
        return cast("str | None", connection.recv())
    except (EOFError, OSError):
        return ""


def _hang_up(connection: Connection) -> None:
    """Ends a connection. Closing it would not, as long as a thread of this process reads from it."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)


def _prepare(connection: Connection) -> None:
    """Makes the end of a connection that of its process.

    Workers that read data are forked later, and would keep it open. A machine without power closes nothing:
    after half a minute without an answer the system does.
    """
    os.register_at_fork(after_in_child=connection.close)
    with socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
