"""A loader whose workers report: what they left out, what went wrong in one line, and batches that fit.

Plain loaders of PyTorch turn an error of a worker into another error with the worker's traceback for its
text, and wait for ever where a batch does not fit into shared memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ifdd.data.datasets.videos import LeftOut, VideoDataset
from ifdd.data.errors import DatasetError, DatasetWarning, VideoError
from ifdd.training.order import Place
from ifdd.training.pieces import Pieces, Task, Tasks
from ifdd.training.windows import own_memory

SHARED_MEMORY = "/dev/shm"
PREFETCH = 2
"""Batches that a worker makes in advance, as in PyTorch."""
IN_USE = 3
"""Batches that a training holds at a time: that of the step, the next one, by which Lightning knows the last,
and the one that a worker is asked for meanwhile."""

MALLOC = {-3: 32 << 20, -1: 256 << 20}
"""Of glibc's <malloc.h>: blocks from this size on are mapped (M_MMAP_THRESHOLD, the most it takes), and this
much stays with the process (M_TRIM_THRESHOLD)."""


class WorkerTraceback(Exception):  # noqa: N818  (not an error of its own: the cause shown by --debug)
    """Where an error arose in another process."""


class _Failure(NamedTuple):
    error: Exception
    trace: str


class _Parcel(NamedTuple):
    """The reply of a worker for one batch; `batch` is None if no clip of it is left."""

    batch: Any
    left_out: list[LeftOut]
    failure: _Failure | None
    piped: int
    """bytes of a batch that comes through the pipe since it did not fit into shared memory, else 0"""
    piece: int | None
    """that was lent for the batch"""
    in_piece: bool
    """whether the clips are there"""


class ClipLoader(DataLoader[Any]):
    """Batches of a data set of clips.

    Errors of workers are raised as they were, their traceback as the cause.

    Batches travel in pieces of shared memory that are made before the workers start and used again and
    again, see :class:`~ifdd.training.pieces.Pieces`. A batch that finds none free, or is larger, has one of
    its own. Where free shared memory is too little for the pieces, all batches come through pipes, which is
    slower, with one warning; so does a single batch with a piece of its own where there is no room for that.

    Args:
        dataset: items (clip, label).
        collate: joins items to a batch, a tuple of tensors, the clips first, in the memory that its argument
            ``empty`` makes.
        batch_bytes: of the largest batch as it travels; None where that is not known: each batch of workers
            has shared memory of its own then.
        processes: of this machine, each with such a loader.
        videos: the data set of videos below `dataset`, whose unreadable ones may be left out; None for
            others.
        record: receives what was left out.
        batches: the items of each batch, by number or as a :class:`~ifdd.training.order.Place`.
        empty: makes the only batch of a process that has no clip; without it, that is an error.
        options: of `torch.utils.data.DataLoader`.

    Raises:
        DatasetError: when iterated, if no clip at all could be read.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[..., Any],
        *,
        batch_bytes: int | None,
        processes: int = 1,
        videos: VideoDataset | None = None,
        record: Callable[[Sequence[LeftOut]], None],
        batches: Sampler[Any],
        empty: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        workers = _possible_workers(options.pop("num_workers", 0))
        self._batch_bytes = batch_bytes
        self._processes = processes
        self._record = record
        self._warned = False
        self._empty = empty
        self._pack = _Pack(collate, videos)
        self._tasks = Tasks(batches)
        if workers:
            options |= {"prefetch_factor": PREFETCH, "worker_init_fn": _keep_freed_memory}
        super().__init__(
            cast("Dataset[Any]", _Guarded(dataset, videos)),
            batch_sampler=cast(Any, self._tasks),
            collate_fn=cast(Any, self._pack),
            num_workers=workers,
            persistent_workers=workers > 0,
            **options,
        )

    def __len__(self) -> int:
        batches = super().__len__()
        return batches if self._empty is None else max(1, batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        empty = True
        if self.num_workers and self._iterator is None:
            self._look_for_memory()
        pieces = self._tasks.pieces
        parcels = super().__iter__()  # workers have started
        if pieces is not None:
            pieces.handed_over()
        for parcel in parcels:
            if pieces is not None and parcel.piece is not None:
                pieces.came_back(parcel.piece, parcel.batch[0] if parcel.in_piece else None)
            if parcel.left_out:
                self._record(parcel.left_out)
            if parcel.failure is not None:
                cause = WorkerTraceback(parcel.failure.trace) if self.num_workers else None
                raise parcel.failure.error from cause
            if parcel.piped:
                self._warn(f"a batch takes {_mebibytes(parcel.piped)}")
            if parcel.batch is not None:
                empty = False
                yield _converted(parcel.batch, np.ndarray, torch.from_numpy) if parcel.piped else parcel.batch
        if empty and self._empty is not None:
            yield self._empty()
        elif empty:
            raise DatasetError("no clip could be read: nothing is left of this part of the data set")

    def _look_for_memory(self) -> None:
        """Makes the pieces for the workers that are about to start, if there is enough shared memory."""
        self._pack.pieces = self._tasks.pieces = None  # gone before free memory is looked at
        if self._batch_bytes is None:
            return
        count = min(PREFETCH * self.num_workers, len(self)) + IN_USE
        own = self._batch_bytes * count
        needed = own * self._processes
        free = free_shared_memory()
        # Processes that began earlier have taken their part of it: there must be room for all in the whole.
        self._pack.shares = free is None or (own <= free and needed <= shared_memory_size())
        if self._pack.shares:
            try:
                self._pack.pieces = self._tasks.pieces = Pieces(count, self._batch_bytes)
            except (RuntimeError, OSError):  # another process took it meanwhile
                self._pack.shares = False
        if not self._pack.shares:
            self._warn(f"{_among(self.num_workers, self._processes)} may take {_mebibytes(needed)}")

    def _warn(self, need: str) -> None:
        if self._warned:
            return
        self._warned = True
        free = _mebibytes(free_shared_memory() or 0)
        text = (
            f"shared memory is short ({SHARED_MEMORY} has {free} free, {need}): batches go through pipes, "
            "which is slower; containers get more with `docker run --shm-size`, and smaller batches or fewer "
            "workers need less"
        )
        warnings.warn(text, DatasetWarning, stacklevel=3)


class _Guarded:
    """The items of a data set; None for one left out, `_Failure` for an error."""

    def __init__(self, dataset: Any, videos: VideoDataset | None) -> None:
        self.dataset = dataset
        self.videos = videos
        # Frames travel as bytes where the data set has them; they are converted where they are used.
        self.read = dataset.raw if isinstance(dataset, VideoDataset) else dataset.__getitem__

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, task: Task) -> tuple[list[Any], int | None]:
        """What a loader asks for in the place of single items, for :class:`_Pack`."""
        return [self[place] for place in task.places], task.piece

    def __getitem__(self, place: Place | int) -> Any:
        if isinstance(place, Place):
            self.dataset.set_epoch(place.epoch)
        index = place.clip if isinstance(place, Place) else place
        held_out = self.videos is not None and self.videos.skips and not self.videos.training
        try:
            if held_out and cast(VideoDataset, self.videos).is_left_out(index):
                return None
            return self.read(index)
        except Exception as error:
            if held_out and isinstance(error, VideoError):
                cast(VideoDataset, self.videos).leave_out(index, error)
                return None
            return _failure(error)


class _Pack:
    """Joins items to a parcel.

    ``shares``: whether workers put clips into shared memory; ``pieces``: of it that are there for them.
    """

    def __init__(self, collate: Callable[..., Any], videos: VideoDataset | None) -> None:
        self.collate = collate
        self.videos = videos
        self.shares = True
        self.pieces: Pieces | None = None

    def __call__(self, task: tuple[Sequence[Any], int | None]) -> _Parcel:
        items, piece = task
        news = self.videos.take_news() if self.videos is not None else []
        failure = next((item for item in items if isinstance(item, _Failure)), None)
        there = [item for item in items if item is not None]
        if failure is not None or not there:
            return _Parcel(None, news, failure, 0, piece, False)
        try:
            if get_worker_info() is None:
                return _Parcel(self.collate(there), news, None, 0, None, False)
            memory = _Memory(self.pieces, piece, self.shares)
            sent, piped = _for_sending(self.collate(there, empty=memory))
            return _Parcel(sent, news, None, piped, piece, memory.in_piece and not piped)
        except Exception as error:
            return _Parcel(None, news, _failure(error), 0, piece, False)


class _Memory:
    """An :data:`~ifdd.training.windows.Empty` in a piece, else in new shared memory or the process's own.

    ``in_piece``: whether it is the first of them.
    """

    def __init__(self, pieces: Pieces | None, piece: int | None, shares: bool) -> None:
        self.pieces = pieces
        self.piece = piece
        self.shares = shares
        self.in_piece = False

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.pieces is not None and self.piece is not None:
            memory = self.pieces.tensor(self.piece, shape, dtype)
            if memory is not None:
                self.in_piece = True
                return memory
        return share_memory(shape, dtype) if self.shares else own_memory(shape, dtype)


def _failure(error: Exception) -> _Failure:
    trace = traceback.format_exc()
    if get_worker_info() is not None:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failure(error, trace)


def share_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An :data:`Empty` in shared memory; in that of the process where other programs have taken it."""
    size = math.prod(shape) * dtype.itemsize
    free = free_shared_memory()
    if free is None or size <= free:
        with contextlib.suppress(RuntimeError, OSError):
            # PyTorch's own way of joining a batch; a tensor that is moved there is copied.
            storage = torch.UntypedStorage._new_shared(size)
            return torch.empty(0, dtype=dtype).set_(storage).view(shape)
    return own_memory(shape, dtype)


def _for_sending(batch: Any) -> tuple[Any, int]:
    """A batch whose clips are in shared memory with its other tensors there, too; of another one the arrays,
    which go through the pipe, and their bytes.
    """
    if batch[0].is_shared():
        try:
            for part in batch:
                if isinstance(part, Tensor):
                    part.share_memory_()
            return batch, 0
        except (RuntimeError, OSError):
            pass  # another process took it meanwhile
    size = sum(part.nbytes for part in batch if isinstance(part, Tensor))
    return _converted(batch, Tensor, Tensor.numpy), size


def _converted(batch: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The same tuple with its parts of one kind converted."""
    parts = [convert(part) if isinstance(part, kind) else part for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)


def free_shared_memory() -> int | None:
    """Bytes that workers can still share with the training; None where the system does not say."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return state.f_bavail * state.f_frsize


def shared_memory_size() -> int:
    """Bytes of all shared memory, used or not."""
    state = os.statvfs(SHARED_MEMORY)
    return state.f_blocks * state.f_frsize


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _among(workers: int, processes: int) -> str:
    count = f"{workers} worker{'s' * (workers > 1)}"
    return count if processes == 1 else f"{count} of each of {processes} processes"


def _keep_freed_memory(worker: int) -> None:
    """Lets a worker reuse the memory of the clips that it has sent.

    glibc gives blocks of that size back to the system, and every clip would pay for hundreds of new pages,
    about as much as for decoding it. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC.items():
            mallopt(parameter, value)


def _possible_workers(wanted: int) -> int:
    """0 where the system has no semaphores to guard their queues."""
    if wanted:
        try:
            torch.multiprocessing.get_context().Lock()
        except (OSError, ImportError) as error:
            warnings.warn(f"videos are read without workers: {error}", DatasetWarning, stacklevel=3)
            return 0
    return wanted
