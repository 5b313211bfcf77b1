"""The fastest backend of an op on known GPUs, at the sizes where it was measured.

The table is ``measured.json`` beside this file, written by ``python -m benchmarks.report.fastest``: device
name -> op -> entries. It is empty: no GPU has been measured, so ``auto`` takes the native kernel where one is
compiled, else Triton, else the reference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("measured.json")
#: An entry counts for sizes that differ from its own by no more than this factor each. The batches and blocks
#: that the benchmarks measure are four apart in most sizes: half-way to the next one, on a scale of factors.
NEAR = 2.0


@dataclass(frozen=True)
class Entry:
    """The fastest backend at one shape."""

    backend: str
    #: Name of the activations' dtype, e.g. "bfloat16".
    dtype: str
    #: Whether gradients were computed too.
    training: bool
    #: What :attr:`ifdd_kernels._operator.Operator.sizes` returns.
    sizes: tuple[int, ...]
    #: Name of the raw file.
    file: str

    def __str__(self) -> str:
        run = "training" if self.training else "inference"
        return f"{self.dtype}, {run}, sizes {'x'.join(map(str, self.sizes))} ({self.file})"


Table = dict[str, dict[str, list[Entry]]]


def parse(data: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Table:
    """The table from its JSON form."""
    return {
        device: {
            op: [Entry(**{**row, "sizes": tuple(row["sizes"])}) for row in rows] for op, rows in ops.items()
        }
        for device, ops in data.items()
    }


def nearest(
    entries: Sequence[Entry], dtype: torch.dtype, sizes: tuple[int, ...], training: bool
) -> Entry | None:
    """The entry of this dtype and pass whose sizes are nearest, if they are within :data:`NEAR`.

    The distance is the largest factor between two sizes, then the product of all factors.
    """
    name = str(dtype).removeprefix("torch.")

    def distance(entry: Entry) -> tuple[float, float]:
        if 0 in sizes or len(sizes) != len(entry.sizes):
            return math.inf, math.inf
        factors = [abs(math.log2(a / b)) for a, b in zip(sizes, entry.sizes, strict=True)]
        return max(factors, default=0.0), sum(factors)

    alike = [entry for entry in entries if (entry.dtype, entry.training) == (name, training)]
    found = min(alike, key=distance, default=None)
    return found if found is not None and distance(found)[0] <= math.log2(NEAR) else None


#: Device name -> op -> entries.
FASTEST: Table = parse(json.loads(PATH.read_text()))
