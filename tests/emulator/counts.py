"""Memory accesses of the warps of all CUDA kernels at the network's kind of shapes, in the emulator.

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

from emulator.build import ROOT, Counts, EmulatedOp, Plant
from emulator.compare import cotangents_of
from ifdd_kernels import _arguments
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import Maker

TABLE = Path(__file__).with_name("counts.csv")
OPS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
DTYPES = (torch.bfloat16, torch.float32)
#: Fewer instances compile faster.
FEWER = {"lifting_attention": [Plant("dispatch_at_least<32, 64, 96, 128>", "dispatch_at_least<96>")]}


def arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Of an op, at its shape."""
    make = Maker(dtype, seed=7)
    frames, (height, width), channels, rows, pool = 8, (4, 4), 768, 7, 4

    if name == "add_layer_norm":
        return _arguments.add_layer_norm(make, (2, 25, 96)).of(name)
    if name == "augment_clips":
        pixels = make.pixels(1, 2, 96, 96, 3)
        return _arguments.augment_clips(make, pixels, [[4, 8, 80, 85]], [[0, 1, 2, 3]], 96).of(name)
    if name == "pool_tokens":
        grid, stride_kv = (2, 8, 16), (1, 2, 2)
        return _arguments.pool_tokens(make, 1, grid, 1, 96, stride_kv=stride_kv).of(name)
    if name == "lifting_attention":
        query, *key_value = (make.normal(1, 100, 1, 96) for _ in range(3))
        return (query, *key_value, 96**-0.5)
    if name == "lifting_loss":
        return make.normal(2, height * width), 0.1, 1.0, True
    if name == "frame_correlation":
        return make.normal(1, frames, rows * pool**2), 1 / channels
    x = make.normal(1, frames, height * width, channels)
    if name == "split_frames":
        index = [make.positions(1, frames // 2, frames) for _ in range(2)]
        return _arguments.split_frames(make, x, *index).of(name)
    if name == "lifting_residual":
        return x, make.normal(1, frames // 2, height * width, channels)
    if name == "topk_split_index":
        return x, height, width, pool, True
    build = {"frame_tokens": _arguments.frame_tokens, "split_index": _arguments.split_index}[name]
    return build(make, x, height, width, pool, rows).of(name)


def count(name: str, dtype: torch.dtype, plants: tuple[Plant, ...] = ()) -> Iterator[Counts]:
    """The launches of an op's forward and backward, with the kernels' names alone."""
    op = EmulatedOp(name, [*FEWER.get(name, []), *plants], counting=True)
    op.library.configure(0)
    op.library.counted()
    args = arguments(name, dtype)
    outputs = outputs_of(op.forward(*args))
    if op.operator.wiring is not None:
        op.backward(*op.operator.wiring.arguments(args, outputs, cotangents_of(outputs)))
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
