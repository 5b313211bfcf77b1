"""``pool_tokens`` in Triton on shapes like the network's: registry samples are in test_samples.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ifdd_kernels import _arguments
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.triton import interpreted
from ops.backend_checks import check_backend
from ops.cases import nightly

DEVICE = "cpu" if interpreted() else "cuda"
ENTRY = REGISTRY["pool_tokens"]
GRIDS = [
    # batch, grid, key_value_grid, heads, channels, stride_q, stride_kv
    pytest.param((1, (8, 7, 7), None, 2, 96, (1, 1, 1), (1, 1, 1)), id="block 9, 2 heads"),
    pytest.param((1, (3, 8, 9), (3, 5, 4), 1, 24, (1, 2, 2), (1, 3, 3)), id="live tokens"),
    nightly((2, (5, 34, 5), (5, 34, 5), 1, 8, (1, 1, 1), (1, 8, 1)), id="more than a tile"),
    nightly((1, (9, 3, 4), (4, 3, 3), 3, 17, (3, 1, 2), (2, 4, 5)), id="all axes strided"),
    nightly((1, (40, 1, 2), None, 1, 1, (1, 1, 1), (1, 1, 2)), id="long clip, one channel"),
    pytest.param((1, (1, 1, 1), (2, 1, 1), 1, 256, (1, 1, 1), (1, 1, 1)), id="one cell"),
]


def _sample(make: Maker, batch: int, grid: Any, kv_grid: Any, *sizes: Any) -> Sample:
    heads, channels, *strides = sizes
    arguments = _arguments.pool_tokens(make, batch, grid, heads, channels, *strides, kv_grid)
    if kv_grid is not None:
        shape = arguments.activations["key_value"].shape
        arguments.activations["key_value"] = make.strided(*shape)
    return Sample("", arguments.of("pool_tokens"))


@pytest.mark.parametrize("case", GRIDS)
def test_values_and_gradients(case: tuple[Any, ...]) -> None:
    check_backend(ENTRY, _sample(Maker(torch.float32, DEVICE, seed=4), *case))


@pytest.mark.parametrize("case", [nightly(*GRIDS[0].values, id=GRIDS[0].id), GRIDS[1]])
def test_values_and_gradients_in_bfloat16(case: tuple[Any, ...]) -> None:
    check_backend(ENTRY, _sample(Maker(torch.bfloat16, DEVICE, seed=4), *case))
