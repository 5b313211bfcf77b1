"""What the warps of all CUDA kernels touch in memory at shapes like the network's, counted in the emulator.

``python -m emulator.counts``, from the root of a checkout with its root and ``tests`` on ``PYTHONPATH``,
writes ``counts.csv``, which ``test_counts.py`` compares. Channels, heads, strides and parameters are the
network's; clips, grids and tokens are smaller, which changes how many blocks there are and nothing about what
a warp does.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emulator.build import ROOT, Counts, EmulatedOp, Plant
from emulator.compare import backward_arguments, cotangents_of
from ifdd_kernels.registry import Maker
from ops.cases import outputs_of

TABLE = Path(__file__).with_name("counts.csv")
OPS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
DTYPES = (torch.bfloat16, torch.float32)
#: Fewer instances compile faster.
FEWER = {"lifting_attention": [Plant("dispatch_at_least<32, 64, 96, 128>", "dispatch_at_least<96>")]}


def arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of an op, at its shape."""
    make = Maker(dtype, seed=7)
    frames, (height, width), channels, rows, pool = 8, (4, 4), 768, 7, 4

    def norms(count: int, size: int) -> list[Tensor]:
        return [make.parameter(size, mean=mean, scale=0.3) for _ in range(count) for mean in (1.0, 0.0)]

    if name == "pool_tokens":
        grid, d = (2, 8, 16), 96
        qkv = make.normal(1, 1 + grid[0] * grid[1] * grid[2], 3 * d)
        weights = [make.parameter(d, 1, 3, 3, 3, scale=0.3) for _ in range(3)]
        strides = [1, 1, 1], [1, 2, 2]
        return (qkv, None, *weights, *norms(3, d), list(grid), list(grid), 1, *strides, 1e-6)
    if name == "lifting_attention":
        query, *key_value = (make.normal(1, 100, 1, 96) for _ in range(3))
        return (query, *key_value, 96**-0.5)
    if name == "lifting_loss":
        return make.normal(2, height * width), 0.1, 1.0, True
    x = make.normal(1, frames, height * width, channels)
    if name == "frame_correlation":
        return make.normal(1, frames, rows * pool**2), 1 / channels
    if name == "split_frames":
        index = [make.positions(1, frames // 2, frames) for _ in range(2)]
        return (x, *index, *norms(2, channels), 1e-5, False)
    if name == "lifting_residual":
        return x, make.normal(1, frames // 2, height * width, channels)
    if name == "topk_split_index":
        return x, height, width, pool, True
    weight = make.parameter(rows, channels, scale=channels**-0.5), make.parameter(rows)
    if name == "frame_tokens":
        return (x, *weight, height, width, pool)
    assert name == "split_index"
    offsets = [make.parameter(frames // 2, frames**2, scale=0.1) for _ in range(2)]
    return (x, *weight, *offsets, height, width, pool, 1.0)


def count(name: str, dtype: torch.dtype, plants: tuple[Plant, ...] = ()) -> Iterator[Counts]:
    """The launches of an op's forward and backward, with the kernels' names alone."""
    op = EmulatedOp(name, [*FEWER.get(name, []), *plants], counting=True)
    op.library.configure(0)
    op.library.counted()
    args = arguments(name, dtype)
    outputs = outputs_of(op.forward(*args))
    if op.operator.backward is not None:
        op.backward(*backward_arguments(op, args, cotangents_of(outputs), outputs))
    for counts in op.library.counted():
        # void ifdd::cuda::(anonymous namespace)::some_kernel<float, 4>(...)
        kernel = re.sub(r"^void |ifdd::cuda::|\(anonymous namespace\)::", "", counts.kernel).partition("(")[0]
        yield replace(counts, kernel=kernel)


def load() -> dict[tuple[str, str], list[Counts]]:
    """By op and dtype, the launches in their order."""
    table: dict[tuple[str, str], list[Counts]] = {}
    with TABLE.open(newline="") as stream:
        for row in csv.DictReader(stream):
            key, kernel = (row.pop("op"), row.pop("dtype")), row.pop("kernel")
            table.setdefault(key, []).append(Counts(kernel, **{name: int(n) for name, n in row.items()}))
    return table


def write() -> None:
    """Counts all ops anew."""
    with TABLE.open("w", newline="") as stream:
        names = ["op", "dtype", *(field.name for field in fields(Counts))]
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        for name in OPS:
            for dtype in DTYPES:
                for counts in count(name, dtype):
                    writer.writerow(
                        {"op": name, "dtype": str(dtype).removeprefix("torch."), **asdict(counts)}
                    )
            stream.flush()


if __name__ == "__main__":
    write()
