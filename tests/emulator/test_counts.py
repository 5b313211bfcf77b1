"""Memory accesses of warps, counted by the emulator: the counters on patterns whose counts are known, and
the counts of today's kernels at shapes like the network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch

from emulator import build
from emulator import counts as kernels
from emulator.build import HERE, ROOT, Counts, Plant, compile_source, load
from ops.cases import nightly

pytestmark = [
    pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler"),
    pytest.mark.skipif(bool(build.SANITIZE), reason="accesses are counted without sanitizers"),
]

KERNELS = ["load", "store", "store_vectors", "half", "ragged", "shared", "shared_vectors", "matrices"]


def count(kernel: str, stride: int) -> Counts:
    """One launch of a kernel of patterns.cu, by one warp."""
    library = compile_source(HERE / "kernels" / "patterns.cu", counting=True)
    ops: Any = load(library, {"pattern": "(Tensor x, int which, int stride) -> Tensor"})
    library.configure(0)
    library.counted()
    ops.pattern(torch.randn(32 * 128), KERNELS.index(kernel), stride)
    (counts,) = library.counted()
    assert f"{kernel}_kernel" in counts.kernel
    return counts


@pytest.mark.parametrize(
    ("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (3, 12), (4, 16), (8, 32), (100, 32)]
)
def test_sectors_of_a_stride(stride: int, sectors: int) -> None:
    """32 lanes of four bytes: a sector holds eight of them."""
    loads, stores = count("load", stride), count("store", stride)
    distinct = 4 if stride == 0 else 128
    assert (loads.load_requests, loads.load_sectors, loads.load_bytes) == (1, sectors, distinct)
    assert (loads.store_requests, loads.store_sectors, loads.store_bytes) == (1, 4, 128)
    assert (stores.store_requests, stores.store_sectors, stores.store_bytes) == (1, sectors, distinct)
    assert (stores.load_requests, stores.load_sectors, stores.load_bytes) == (1, 4, 128)


def test_sectors_of_vectors() -> None:
    dense, apart = count("store_vectors", 1), count("store_vectors", 2)
    assert (dense.load_requests, dense.load_sectors, dense.store_requests, dense.store_sectors) == (
        1,
        16,
        1,
        16,
    )
    assert (apart.load_sectors, apart.load_bytes, apart.store_sectors) == (32, 512, 32)


def test_lanes_that_do_not_take_part() -> None:
    half = count("half", 1)
    assert (half.load_requests, half.load_sectors, half.load_bytes) == (1, 4, 64)
    ragged = count("ragged", 64)  # row r is read by lanes r .. 31, so from sector r / 8 of its four on
    assert ragged.load_requests == 32
    assert ragged.load_sectors == 8 * (4 + 3 + 2 + 1)
    assert ragged.load_bytes == 4 * 32 * 33 // 2


@pytest.mark.parametrize(
    ("stride", "passes"), [(0, 1), (1, 1), (2, 2), (4, 4), (16, 16), (31, 1), (32, 32), (33, 1), (34, 2)]
)
def test_bank_conflicts_of_a_stride(stride: int, passes: int) -> None:
    """A column of a matrix with rows of that many floats: rows of 32 lie in one bank, padded ones in all."""
    counts = count("shared", stride)
    assert (counts.shared_requests, counts.shared_passes, counts.shared_least) == (2, 2 * passes, 2)
    assert counts.bank_conflicts == 2 * (passes - 1)
    assert (counts.load_requests, counts.store_requests) == (1, 1)


@pytest.mark.parametrize(("stride", "passes"), [(1, 4), (2, 8), (3, 4), (4, 16), (8, 32), (9, 4)])
def test_bank_conflicts_of_vectors(stride: int, passes: int) -> None:
    """16 bytes a lane, eight lanes at a time; also of the rows of matrices, and of asynchronous copies."""
    vectors, matrices = count("shared_vectors", stride), count("matrices", stride)
    assert (vectors.shared_requests, vectors.shared_passes, vectors.shared_least) == (2, 2 * passes, 8)
    assert (vectors.load_requests, vectors.load_sectors) == (1, 16)
    assert (matrices.shared_requests, matrices.shared_passes, matrices.shared_least) == (1, passes, 4)


#: Another version of the host's compiler keeps another value or two in registers.
SLACK = 0.05


def differences(held: Sequence[Counts], got: Sequence[Counts]) -> list[str]:
    """Counts of launches that are not what they were."""
    assert [one.kernel for one in got] == [one.kernel for one in held]
    return [
        f"{before.kernel}: {name} {asdict(now)[name]}, was {number}"
        for before, now in zip(held, got, strict=True)
        for name, number in asdict(before).items()
        if name != "kernel" and abs(asdict(now)[name] - number) > SLACK * number
    ]


#: Counted at night: minutes of compiling.
LARGE = {"lifting_attention", "pool_tokens", "split_frames", "split_index"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [nightly(name, id=name, when=name in LARGE) for name in kernels.OPS])
def test_kernels_touch_what_they_did(name: str) -> None:
    """More is a regression; less is to be held from now on: ``python -m emulator.counts`` writes it."""
    table = kernels.load()
    for dtype in kernels.DTYPES:
        held = table[name, str(dtype).removeprefix("torch.")]
        assert differences(held, list(kernels.count(name, dtype))) == []


#: Rows of tiles that begin in the same bank, and channels that lie in memory apart for neighbouring lanes.
REGRESSIONS = {
    "lifting_attention": (
        "shared_passes",
        ROOT / "csrc" / "include" / "ifdd" / "cuda" / "mma.h",
        Plant("Columns + kVector<T>", "Columns"),
    ),
    "lifting_residual": (
        "store_sectors",
        None,
        Plant(
            "c = lane_index() * V; c < C; c += kWarp * V",
            "c = lane_index() * C / kWarp; c < (lane_index() + 1) * C / kWarp; c += V",
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [nightly(name, id=name, when=name in LARGE) for name in REGRESSIONS])
def test_a_regression_is_seen(name: str) -> None:
    column, header, plant = REGRESSIONS[name]
    if header is not None:  # which becomes part of the source
        text = plant.apply(header.read_text().replace("#pragma once", ""))
        plant = Plant(f'#include "ifdd/cuda/{header.name}"', text)
    held = kernels.load()[name, "bfloat16"]
    found = differences(held, list(kernels.count(name, torch.bfloat16, (plant,))))
    assert any(column in one for one in found), found
