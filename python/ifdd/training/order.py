"""In which order clips are read, and by which process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from ifdd.training.seeds import derived_seed


class Place(NamedTuple):
    """A clip of an epoch. Workers that live on learn by it which epoch it is."""

    epoch: int
    clip: int


class EpochOrder(Sampler[list[Place]]):
    """Batches of one epoch, ``epoch``, in a random order that is a function of (seed, epoch): equal each time
    it is iterated.

    Each batch is cut into equal parts, one for each rank, so all ranks together take the batches that one
    process takes. A last, smaller batch is left out, unless it is the only one: it would be mixed with fewer
    partners and weigh more per clip.

    A loader's own generator goes on from iteration to iteration, and the trainer starts an epoch's iteration
    once after a resume but twice otherwise.

    Args:
        size: number of clips.
        batch_size: clips of a batch, over all ranks; a multiple of ``ranks``.
        seed: of the order.
        rank, ranks: which part of each batch is this process's.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.rank = rank
        self.ranks = ranks

    def __len__(self) -> int:
        return max(1, self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[Place]]:
        numbers = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=numbers).tolist()
        part = self.batch_size // self.ranks
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = order[start : start + self.batch_size]
            yield [Place(self.epoch, clip) for clip in batch[self.rank * part : (self.rank + 1) * part]]


class Share(Sampler[int]):
    """The clips of a rank when testing: every ``ranks``-th, so that each clip is some rank's and no one's
    twice.

    Shares differ by one clip where the numbers ask for it; nothing is padded.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1) -> None:
        self.places = range(rank, size, ranks)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)
