"""A loader whose workers report: what they left out, what went wrong in one line, and batches that fit.

Plain loaders of PyTorch turn an error of a worker into another error with the worker's traceback for its
text, and wait for ever where a batch does not fit into shared memory.
"""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ifdd.data.datasets.videos import LeftOut, VideoDataset
from ifdd.data.errors import DatasetError, DatasetWarning, VideoError
from ifdd.training.order import Place

SHARED_MEMORY = "/dev/shm"


class WorkerTraceback(Exception):  # noqa: N818  (not an error of its own: the cause shown by --debug)
    """Where an error arose in another process."""


class _Failure(NamedTuple):
    error: Exception
    trace: str


class _Parcel(NamedTuple):
    """What comes back for one batch; `batch` is None where nothing was left of it."""

    batch: Any
    left_out: list[LeftOut]
    failure: _Failure | None
    piped: int
    """bytes of a batch that did not fit into shared memory, else 0"""


class ClipLoader(DataLoader[Any]):
    """Batches of a data set of clips.

    Errors of workers are raised as they were, their traceback as the cause. A batch that does not fit into
    free shared memory comes through a pipe instead, which is slower, with one warning.

    Args:
        dataset: items (clip, label).
        collate: joins items to a batch, a tuple of tensors.
        videos: the data set of videos below `dataset`, whose unreadable ones may be left out; None for
            others.
        record: receives what was left out.
        empty: makes the only batch of a process that has no clip; without it, that is an error.
        options: of `torch.utils.data.DataLoader`.

    Raises:
        DatasetError: when iterated, if no clip at all could be read.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Sequence[Any]], Any],
        *,
        videos: VideoDataset | None = None,
        record: Callable[[Sequence[LeftOut]], None],
        empty: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        workers = _possible_workers(options.pop("num_workers", 0))
        self._record = record
        self._warned = False
        self._empty = empty
        guarded = cast("Dataset[Any]", _Guarded(dataset, videos))
        super().__init__(
            guarded,
            collate_fn=_Pack(collate, videos, workers),
            num_workers=workers,
            persistent_workers=workers > 0,
            **options,
        )

    def __len__(self) -> int:
        batches = super().__len__()
        return batches if self._empty is None else max(1, batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        empty = True
        for parcel in super().__iter__():
            if parcel.left_out:
                self._record(parcel.left_out)
            if parcel.failure is not None:
                cause = WorkerTraceback(parcel.failure.trace) if self.num_workers else None
                raise parcel.failure.error from cause
            if parcel.piped and not self._warned:
                self._warned = True
                warnings.warn(_shortage(parcel.piped), DatasetWarning, stacklevel=2)
            if parcel.batch is not None:
                empty = False
                yield _converted(parcel.batch, np.ndarray, torch.from_numpy) if parcel.piped else parcel.batch
        if empty and self._empty is not None:
            yield self._empty()
        elif empty:
            raise DatasetError("no clip could be read: nothing is left of this part of the data set")


class _Guarded:
    """The items of a data set; None for one left out, `_Failure` for an error."""

    def __init__(self, dataset: Any, videos: VideoDataset | None) -> None:
        self.dataset = dataset
        self.videos = videos
        # Frames travel as bytes where the data set has them; they are converted where they are used.
        self.read = dataset.raw if isinstance(dataset, VideoDataset) else dataset.__getitem__

    def __len__(self) -> int:
        return len(self.dataset)

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
    """Joins items to a parcel."""

    def __init__(
        self, collate: Callable[[Sequence[Any]], Any], videos: VideoDataset | None, workers: int
    ) -> None:
        self.collate = collate
        self.videos = videos
        self.workers = workers

    def __call__(self, items: Sequence[Any]) -> _Parcel:
        news = self.videos.take_news() if self.videos is not None else []
        failure = next((item for item in items if isinstance(item, _Failure)), None)
        there = [item for item in items if item is not None]
        if failure is not None or not there:
            return _Parcel(None, news, failure, 0)
        try:
            batch = self.collate(there)
            if get_worker_info() is None:
                return _Parcel(batch, news, None, 0)
            sent, piped = _for_sending(batch, self.workers)
            return _Parcel(sent, news, None, piped)
        except Exception as error:
            return _Parcel(None, news, _failure(error), 0)


def _failure(error: Exception) -> _Failure:
    trace = traceback.format_exc()
    if get_worker_info() is not None:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
    return _Failure(error, trace)


def _for_sending(batch: Any, workers: int) -> tuple[Any, int]:
    """The tensors of a batch in shared memory, or as arrays that go through the pipe, and then their
    bytes.
    """
    size = sum(part.nbytes for part in batch if isinstance(part, Tensor))
    free = free_shared_memory()
    # All workers may ask at the same moment.
    if free is None or size * workers <= free:
        try:
            for part in batch:
                if isinstance(part, Tensor):
                    part.share_memory_()
            return batch, 0
        except (RuntimeError, OSError):
            pass  # another process took it meanwhile
    # Copies, since a part may be in shared memory already.
    return _converted(batch, Tensor, lambda part: part.numpy().copy()), size


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


def _shortage(size: int) -> str:
    free = (free_shared_memory() or 0) / 2**20
    return (
        f"shared memory is short ({SHARED_MEMORY} has {free:.0f} MiB free, a batch takes "
        f"{size / 2**20:.0f} MiB): batches go through pipes, which is slower; containers get more with "
        "`docker run --shm-size`, and smaller batches need less"
    )


def _possible_workers(wanted: int) -> int:
    """0 where the system has no semaphores to guard their queues."""
    if wanted:
        try:
            torch.multiprocessing.get_context().Lock()
        except (OSError, ImportError) as error:
            warnings.warn(f"videos are read without workers: {error}", DatasetWarning, stacklevel=3)
            return 0
    return wanted
