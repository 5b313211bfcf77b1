"""Shared memory that batches travel in, lent again and again.

A new piece for each batch, PyTorch's way, costs a worker a third of its time: the system clears every page,
and the worker meets each of them for the first time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import Sampler


class Task(NamedTuple):
    """What a worker is asked for: the ``places`` of a batch, and the ``piece`` of memory to put it in.

    Without a piece it takes memory of its own.
    """

    places: Sequence[Any]
    piece: int | None


class Pieces:
    """Pieces of shared memory, made before the workers start, which inherit them.

    The process that trains keeps the books: a piece is lent with a task, and is free again when nothing in
    this process refers to the batch that came back in it.

    Args:
        count: number of pieces.
        size: bytes of each.

    Raises:
        RuntimeError: the system has not that much.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._storages: list[torch.UntypedStorage] | None = [
            torch.UntypedStorage._new_shared(size) for _ in range(count)
        ]
        self._lent: set[int] = set()
        self._held: dict[int, StorageWeakRef] = {}

    def handed_over(self) -> None:
        """The workers have started, and hold the memory; this process gives up its hold.

        Where it was sent to them (spawn, forkserver) PyTorch finds it again for each batch that comes back,
        and as long as this process held it, no batch would ever seem to be gone.
        """
        self._storages = None

    def lend(self) -> int | None:
        """A free piece, the first: a worker has the least to pay for memory that it knows. None: all are in
        use.
        """
        self._held = {piece: batch for piece, batch in self._held.items() if not batch.expired()}
        taken = self._lent | self._held.keys()
        piece = next((piece for piece in range(self._count) if piece not in taken), None)
        if piece is not None:
            self._lent.add(piece)
        return piece

    def came_back(self, piece: int, clips: Tensor | None) -> None:
        """The task is done; the piece holds `clips`, None where they are elsewhere."""
        self._lent.discard(piece)
        if clips is not None:
            self._held[piece] = StorageWeakRef(clips.untyped_storage())

    def forget_tasks(self) -> None:
        """No task is under way any more; what came back of them was thrown away."""
        self._lent.clear()

    def tensor(self, piece: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The memory of a piece, for workers; None where it is too small."""
        assert self._storages is not None, "handed over"
        storage = self._storages[piece]
        size = torch.Size(shape).numel() * dtype.itemsize
        if size > storage.nbytes():
            return None
        return torch.empty(0, dtype=torch.uint8).set_(storage)[:size].view(dtype).view(shape)


class Tasks(Sampler[Task]):
    """The batches of a sampler, each with a piece of memory once there are `pieces`."""

    def __init__(self, batches: Iterable[Sequence[Any]]) -> None:
        self.batches = batches
        self.pieces: Pieces | None = None

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Task]:
        # Asked for its first task when the workers have answered all of an earlier iteration that was left.
        if self.pieces is not None:
            self.pieces.forget_tasks()
        for places in self.batches:
            yield Task(places, None if self.pieces is None else self.pieces.lend())
