"""Triton's tokenizer, correlation, indexes and hard split where the registry's samples do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import reference
from ifdd_kernels.registry import Maker
from ops.cases import nightly
from ops.triton_cases import DEVICE, DTYPES, POOLS, check, device_tiles, strided_frames


def _tokenizer(make: Maker, rows: int, channels: int) -> tuple[Tensor, Tensor]:
    return make.parameter(rows, channels, scale=channels**-0.5), make.parameter(rows)


def _offsets(make: Maker, frames: int, scale: float) -> list[Tensor]:
    return [make.parameter(frames // 2, frames**2, scale=scale) for _ in range(2)]


def _split_arguments(make: Maker, shape: Any, grid: Any, rows: int, pool: int) -> tuple[Any, ...]:
    frames = shape[1]
    tokens = _tokenizer(make, rows, shape[3])
    return make.normal(*shape), *tokens, *_offsets(make, frames, 1 / frames), *grid, pool, 2.0


@pytest.mark.parametrize(("grid", "pool"), POOLS, ids=str)
def test_tokens_on_ragged_grids(grid: tuple[int, int], pool: int) -> None:
    for dtype in (torch.float32, torch.bfloat16)[: 2 if pool == 4 else 1]:
        make = Maker(dtype, DEVICE, seed=pool)
        x = make.normal(2, 3, grid[0] * grid[1], 24)
        check("frame_tokens", x, *_tokenizer(make, 7, 24), *grid, pool)


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 5), (17, 100), (40, 33)])
def test_tokens_of_any_width(rows: int, channels: int) -> None:
    for dtype in DTYPES:
        make = Maker(dtype, DEVICE, seed=rows)
        check("frame_tokens", make.normal(1, 2, 6, channels), *_tokenizer(make, rows, channels), 2, 3, 2)


def test_parameters_in_16_bits() -> None:
    make = Maker(torch.bfloat16, DEVICE)
    check("frame_tokens", make.normal(2, 3, 6, 20), make.normal(3, 20), make.normal(3), 2, 3, 2)


@pytest.mark.parametrize("choice", [0, nightly(1), nightly(2)])
def test_tiles_of_every_configuration(choice: int) -> None:
    from ifdd_kernels.triton import frame_correlation, frame_tokens, split_index, topk_split_index

    make = Maker(torch.float32, DEVICE, seed=choice)
    with device_tiles(choice, frame_correlation, frame_tokens, split_index, topk_split_index):
        # 36 outputs, 130 channels, 66 rows, 34 frames: none a multiple of a tile, several tiles of each.
        check("frame_tokens", make.normal(1, 11, 6, 130), *_tokenizer(make, 36, 130), 2, 3, 2)
        check("frame_correlation", make.normal(1, 34, 70), 0.1)
        check("split_index", *_split_arguments(make, (1, 34, 2, 9), (1, 2), 5, 3))
        check("topk_split_index", make.normal(1, 8, 2, 1030), 1, 2, 2, False)


def test_the_weight_gradient_of_many_rows() -> None:
    """More cells than one run of the partial sums, the last run shorter than the others."""
    make = Maker(torch.float32, DEVICE)
    check("frame_tokens", make.normal(1, 9, 15, 3), *_tokenizer(make, 2, 3), 3, 5, 2)


def test_frames_with_strides_are_read_in_place() -> None:
    make = Maker(torch.float32, DEVICE)
    x = strided_frames(make)
    args = (*_tokenizer(make, 5, 20), 3, 3, 2)
    op = torch.ops.ifdd.frame_tokens_triton
    assert torch.equal(op(x, *args), op(x.contiguous(), *args))
    check("frame_tokens", x, *args)
    check("split_index", x, *args[:2], *_offsets(make, 4, 0.3), 3, 3, 2, 2.0)
    check("topk_split_index", x, 3, 3, 2, True)


@pytest.mark.parametrize("dtype", [torch.float32, *map(nightly, DTYPES[1:])], ids=str)
def test_indexes_of_shapes_like_the_networks(dtype: torch.dtype) -> None:
    check("split_index", *_split_arguments(Maker(dtype, DEVICE), (2, 8, 49, 96), (7, 7), 7, 7))


@pytest.mark.parametrize("frames", [2, 30, nightly(128)])
def test_indexes_of_any_length(frames: int) -> None:
    check("split_index", *_split_arguments(Maker(torch.float32, DEVICE), (1, frames, 6, 17), (2, 3), 3, 2))


def test_a_clip_that_is_not_finite_stays_alone() -> None:
    args = list(_split_arguments(Maker(torch.float32, DEVICE), (2, 8, 4, 6), (2, 2), 3, 2))
    clean = torch.ops.ifdd.split_index_triton(*args)
    args[0] = args[0].clone()
    args[0][0, 2, 1, 3] = float("nan")
    for got, wanted in zip(torch.ops.ifdd.split_index_triton(*args), clean, strict=True):
        assert got[0].isnan().any()
        assert torch.equal(got[1], wanted[1])


def test_large_scores_and_offsets_do_not_overflow() -> None:
    """A softmax of scores near 1e4 and a tanh of its limits."""
    args = list(_split_arguments(Maker(torch.float32, DEVICE), (1, 8, 4, 6), (2, 2), 3, 2))
    args[0] = 300 * args[0]
    args[3], args[4] = 300 * args[3], -300 * args[4]
    static, dynamic, _ = torch.ops.ifdd.split_index_triton(*args)
    exact = reference.split_index(*(a.double() if isinstance(a, Tensor) else a for a in args))
    torch.testing.assert_close(static.double(), exact[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(dynamic.double(), exact[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correlation_of_many_frames(dtype: torch.dtype) -> None:
    check("frame_correlation", Maker(dtype, DEVICE).normal(2, 128, 70), 1 / 70)


def test_correlation_is_symmetric_to_the_bit() -> None:
    for frames in (8, 100):
        correlation = torch.ops.ifdd.frame_correlation_triton(
            Maker(torch.float32, DEVICE).normal(2, frames, 343), 1 / 768
        )
        assert torch.equal(correlation, correlation.mT)


@pytest.mark.parametrize(("dtype", "frames"), [*zip(DTYPES, (2, 30, 8), strict=True), (torch.float32, 128)])
@pytest.mark.parametrize("prior", [False, True])
def test_the_hard_split_is_the_exact_order(dtype: torch.dtype, frames: int, prior: bool) -> None:
    for grid, pool in (((5, 4), 2), ((2, 3), 3)):
        x = Maker(dtype, DEVICE, seed=frames).normal(2, frames, grid[0] * grid[1], 20)
        # Scores far enough apart for the order to be the same in any precision.
        x = x + (torch.randperm(frames).to(x) / frames).view(1, frames, 1, 1)
        static, dynamic = torch.ops.ifdd.topk_split_index_triton(x, *grid, pool, prior)
        exact = reference.topk_split_index(x.double(), *grid, pool, prior)
        assert torch.equal(static, exact[0])
        assert torch.equal(dynamic, exact[1])


def test_equal_frames_are_ranked_by_time() -> None:
    frame = Maker(torch.float32, DEVICE).normal(1, 1, 6, 50)
    x = frame * torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0], device=DEVICE).view(1, 8, 1, 1)
    for pool in (2, 3):
        static, dynamic = torch.ops.ifdd.topk_split_index_triton(x, 2, 3, pool, False)
        assert static.tolist() == [[0, 1, 3, 6]]
        assert dynamic.tolist() == [[2, 4, 5, 7]]


def test_scores_below_zero_are_ranked_above_no_frame() -> None:
    """Most of them: what fills a tile beyond the last frame must not take part."""
    frame = Maker(torch.float32, DEVICE).normal(1, 1, 6, 50)
    x = frame * torch.tensor([-0.3, -0.1, 5.0, -0.4, -0.2, -0.5], device=DEVICE).view(1, 6, 1, 1)
    static, dynamic = torch.ops.ifdd.topk_split_index_triton(x, 2, 3, 2, False)
    assert static.tolist() == [[1, 2, 4]]
    assert dynamic.tolist() == [[0, 3, 5]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_still_split_all_frames(value: float) -> None:
    x = Maker(torch.float32, DEVICE).normal(3, 8, 4, 6)
    clean = torch.ops.ifdd.topk_split_index_triton(x, 2, 2, 2, False)
    # Two infinities: the scores of the other frames are infinite or NaN.
    x[0, 3, 0, :2] = value
    x[1] = value
    static, dynamic = torch.ops.ifdd.topk_split_index_triton(x, 2, 2, 2, False)
    both = torch.cat([static, dynamic], 1).sort(1).values
    assert torch.equal(both.cpu(), torch.arange(8).expand(3, 8))
    assert torch.equal(static[2:], clean[0][2:])
    exact = reference.topk_split_index(x.double(), 2, 2, 2, False)
    assert torch.equal(static, exact[0])
    assert torch.equal(dynamic, exact[1])
