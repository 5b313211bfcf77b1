"""``pool_tokens`` in Triton on shapes like the network's: registry samples are in test_twins.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.triton import interpreted
from ops.twins import check_twin

DEVICE = "cpu" if interpreted() else "cuda"
ENTRY = REGISTRY["pool_tokens"]
GRIDS = [
    # batch, grid, key_value_grid, heads, channels, stride_q, stride_kv
    pytest.param((1, (8, 7, 7), None, 2, 96, (1, 1, 1), (1, 1, 1)), id="block 9, 2 heads"),
    pytest.param((1, (3, 8, 9), (3, 5, 4), 1, 24, (1, 2, 2), (1, 3, 3)), id="live tokens"),
    pytest.param((2, (5, 34, 5), (5, 34, 5), 1, 8, (1, 1, 1), (1, 8, 1)), id="more than a tile"),
    pytest.param((1, (9, 3, 4), (4, 3, 3), 3, 17, (3, 1, 2), (2, 4, 5)), id="all axes strided"),
    pytest.param((1, (40, 1, 2), None, 1, 1, (1, 1, 1), (1, 1, 2)), id="long clip, one channel"),
    pytest.param((1, (1, 1, 1), (2, 1, 1), 1, 256, (1, 1, 1), (1, 1, 1)), id="one cell"),
]


Triple = tuple[int, int, int]


def _sample(
    make: Maker,
    batch: int,
    grid: Triple,
    kv_grid: Triple | None,
    heads: int,
    channels: int,
    stride_q: Triple,
    stride_kv: Triple,
) -> Sample:
    width = heads * channels
    qkv = make.normal(batch, 1 + math.prod(grid), width * (3 if kv_grid is None else 1))
    key_value = None if kv_grid is None else make.strided(batch, 1 + math.prod(kv_grid), 2 * width)
    weights = [make.parameter(channels, 1, 3, 3, 3, scale=0.2) for _ in range(3)]
    norms = [make.parameter(channels, mean=mean, scale=0.3) for _ in range(3) for mean in (1.0, 0.0)]
    arguments = (list(grid), list(kv_grid or grid), heads, list(stride_q), list(stride_kv), 1e-6)
    return Sample("", (qkv, key_value, *weights, *norms, *arguments))


@pytest.mark.parametrize("case", GRIDS)
def test_values_and_gradients(case: tuple[Any, ...]) -> None:
    check_twin(ENTRY, _sample(Maker(torch.float32, DEVICE, seed=4), *case))


@pytest.mark.parametrize("case", GRIDS[:2])
def test_values_and_gradients_in_bfloat16(case: tuple[Any, ...]) -> None:
    check_twin(ENTRY, _sample(Maker(torch.bfloat16, DEVICE, seed=4), *case))
