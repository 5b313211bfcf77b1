"""CUDA kernels of the ISSM and of the token pooling beyond the registry: sizes that reach every path of a
launcher, long clips, broken indexes, parameters in 16 bits, and refusals.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from emulator import build
from emulator.build import ROOT, SHARED_BYTES, EmulatedOp, Plant
from emulator.compare import DTYPES, check, labels, registry_sample
from ifdd_kernels import _arguments
from ifdd_kernels.registry import REGISTRY, Maker

pytestmark = pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")

TWO_SEEDS = (0, 3)


# add_layer_norm: teams of 4, 8, 16 and 32 lanes, with lanes to spare and without, single elements, blocks of
# backward with several rows a team and with rows of two samples.
STREAMS = {
    "teams of 4, many rows": (3, 1400, 96),
    "teams of 8": (2, 5, 192),
    "teams of 16": (1, 3, 512),
    "a row in all registers": (1, 2, 1024),
    "single elements": (2, 3, 67),
}


@pytest.mark.parametrize("sizes", STREAMS.values(), ids=STREAMS)
def test_add_layer_norm(sizes: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        if dtype == torch.bfloat16 or sizes[1] < 100:
            args = _arguments.add_layer_norm(Maker(dtype, seed=sizes[2]), sizes).of("add_layer_norm")
            check(EmulatedOp("add_layer_norm"), args, seeds=TWO_SEEDS)


def test_add_layer_norm_reads_16_bit_parameters_and_no_gradient_of_the_sum() -> None:
    given = _arguments.add_layer_norm(Maker(torch.bfloat16, seed=5), (2, 9, 96), strided=True)
    given.parameters = {name: value.bfloat16() for name, value in given.parameters.items()}
    op, args = EmulatedOp("add_layer_norm"), given.of("add_layer_norm")
    check(op, args, seeds=TWO_SEEDS)
    added, normed, mean, rstd = op.forward(*args)
    kept = added, args[2], args[4], mean, rstd, args[5]
    nothing = op.backward(None, normed, *kept)
    for found, expected in zip(nothing, op.backward(torch.zeros_like(added), normed, *kept), strict=True):
        assert torch.equal(found, expected)
    assert nothing[2].dtype == torch.bfloat16


# split_frames: 16-byte accesses, rows beyond the registers (1024 channels, 256 without vectors), several
# spans of channels and several ranges of tokens in backward, the longest clip.
SPLITS = {
    "vectors": (1, 8, 3, 64, 4),
    "rows beyond the registers": (1, 4, 1, 1096, 2),
    "odd rows beyond the registers": (1, 3, 2, 267, 1),
    "many clips": (300, 2, 3, 8, 1),
    "T=128": (1, 128, 2, 16, 64),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_split_frames(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, frames, tokens, channels, count = sizes
    make = Maker(dtype, seed=channels)
    x = make.normal(batch, frames, tokens, channels)
    index = [make.positions(batch, count, frames) for _ in range(2)]
    args = _arguments.split_frames(make, x, *index).of("split_frames")
    # A position is a float32 number of up to T: its fraction carries T / 2 ulps. The registry's bound is
    # for T = 32.
    ulps = REGISTRY["split_frames"].ulps * max(1, frames / 32)
    check(EmulatedOp("split_frames"), args, seeds=TWO_SEEDS, ulps=ulps)


def test_split_frames_reads_strided_frames_and_16_bit_norms() -> None:
    make = Maker(torch.bfloat16, seed=3)
    x = make.normal(2, 6, 5, 48)[:, ::2, 1:, 8:40]  # still 16-byte rows
    given = _arguments.split_frames(make, x, make.frame_numbers(2, 2, 3), make.frame_numbers(2, 3, 3))
    given.parameters = {name: value.bfloat16() for name, value in given.parameters.items()}
    check(EmulatedOp("split_frames"), given.of("split_frames"), seeds=TWO_SEEDS)


@pytest.mark.parametrize("bad", [-1, 4, 2**40, float("nan")], ids=str)
def test_split_frames_answers_a_bad_index_with_nan(bad: float) -> None:
    """A launch cannot refuse it without waiting for the GPU; the other frames are as they should be."""
    op = EmulatedOp("split_frames")
    x = Maker(torch.float32).normal(1, 4, 2, 8)
    dtype = torch.float32 if bad != bad else torch.int64
    index = torch.tensor([[1, bad, 2]], dtype=dtype)
    static, dynamic, _ = op.forward(x, index, index, None, None, None, None, 1e-5, True)
    for frames in (static, dynamic):
        assert frames[:, 1].isnan().all()
        assert torch.equal(frames[:, ::2], x[:, 1:3])


def test_a_frame_that_is_not_finite_stays_alone() -> None:
    op = EmulatedOp("split_frames")
    x = Maker(torch.float32).normal(1, 8, 1, 16)
    x[:, 5] = float("nan")
    index = torch.arange(8)[None]
    static = op.forward(x, index, index, None, None, None, None, 1e-5, False)[0]
    assert static.isnan().any(-1).flatten().tolist() == [t == 5 for t in range(8)]


# frame_tokens and split_index: more rows of the weight than a warp takes at once, more than a stage of
# backward holds, vectors, grids that divide unevenly, the longest clip.
TOKENS = {
    "vectors, 9 rows": (1, 2, (2, 3), 40, 9, 2),
    "70 rows": (1, 2, (2, 2), 8, 70, 1),
    "uneven pool": (1, 2, (5, 7), 24, 3, 4),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", TOKENS.values(), ids=TOKENS)
def test_frame_tokens(sizes: tuple[Any, ...], dtype: torch.dtype) -> None:
    batch, frames, (height, width), channels, rows, pool = sizes
    make = Maker(dtype, seed=rows)
    x = make.normal(batch, frames, height * width, channels)
    args = _arguments.frame_tokens(make, x, height, width, pool, rows).of("frame_tokens")
    check(EmulatedOp("frame_tokens"), args, seeds=TWO_SEEDS)


def test_split_index_of_a_long_clip() -> None:
    make = Maker(torch.float32, seed=1)
    frames = 128
    x = make.normal(1, frames, 1, 4)
    args = _arguments.split_index(make, x, 1, 1, 1, rows=2).of("split_index")
    check(EmulatedOp("split_index"), args, seeds=TWO_SEEDS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_topk_split_index_of_a_long_clip(dtype: torch.dtype) -> None:
    x = Maker(dtype, seed=2).normal(2, 160, 2, 8)  # more frames than a warp sums at once
    check(EmulatedOp("topk_split_index"), (x, 1, 2, 1, False), seeds=TWO_SEEDS)


def test_topk_split_index_ranks_the_earlier_of_equals_first() -> None:
    op = EmulatedOp("topk_split_index")
    x = Maker(torch.float32, seed=4).normal(1, 1, 4, 8).expand(1, 6, 4, 8).contiguous()
    static, dynamic = op.forward(x, 2, 2, 2, False)
    assert static.tolist() == [[0, 1, 2]]
    assert dynamic.tolist() == [[3, 4, 5]]
    static, dynamic = op.forward(x, 2, 2, 2, True)
    assert static.tolist() == [[0, 2, 4]]
    assert dynamic.tolist() == [[1, 3, 5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_frame_correlation_is_symmetric_to_the_bit(dtype: torch.dtype) -> None:
    op = EmulatedOp("frame_correlation")
    z = Maker(dtype, seed=6).normal(2, 19, 77)
    check(op, (z, 0.1), seeds=TWO_SEEDS)
    correlation = op.forward(z, 0.1)
    assert torch.equal(correlation, correlation.mT)


def test_lifting_residual_of_two_dtypes() -> None:
    x, y = Maker(torch.float32, seed=1).normal(2, 4, 3, 24), Maker(torch.bfloat16, seed=2).normal(2, 2, 3, 24)
    check(EmulatedOp("lifting_residual"), (x, y), seeds=TWO_SEEDS)


@pytest.mark.parametrize("mean", [False, True])
def test_lifting_loss_of_many_values(mean: bool) -> None:
    residual = Maker(torch.float32, seed=1).normal(7, 5003, scale=2.0)  # three blocks, then one
    check(EmulatedOp("lifting_loss"), (residual, 0.1, 0.7, mean), seeds=TWO_SEEDS)


# pool_tokens: several tiles with ragged ends, every step of an axis, dead rows between windows, 16-byte
# copies, odd and full heads, several heads, tiles made smaller by scarce shared memory.
POOLS = {
    "steps 1 and 2": (1, (2, 9, 19), 1, 16, (1, 1, 1), (1, 2, 2)),
    "steps 2 and 3, dead cells": (1, (4, 11, 12), 2, 8, (2, 2, 2), (3, 5, 4)),
    "steps mixed": (2, (3, 7, 10), 1, 12, (1, 3, 1), (2, 1, 3)),
    "odd head": (1, (2, 5, 9), 2, 7, (1, 1, 1), (1, 2, 2)),
    "96 channels": (1, (2, 3, 5), 1, 96, (1, 1, 1), (1, 2, 2)),
    "128 channels, one cell": (1, (1, 1, 1), 1, 128, (1, 1, 1), (4, 4, 4)),
}


def pool_arguments(make: Maker, sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    return _arguments.pool_tokens(make, *sizes).of("pool_tokens")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", POOLS.values(), ids=POOLS)
def test_pool_tokens(sizes: tuple[Any, ...], dtype: torch.dtype) -> None:
    make = Maker(dtype, seed=sizes[3])
    check(EmulatedOp("pool_tokens"), pool_arguments(make, sizes), seeds=TWO_SEEDS)


@pytest.mark.parametrize("shared_bytes", SHARED_BYTES)
def test_pool_tokens_fits_its_tiles_to_shared_memory(shared_bytes: int) -> None:
    """128 channels in float32: three frames of the largest tile take 188 KB, of the smallest 80 KB."""
    make = Maker(torch.float32, seed=8)
    sizes = (1, (1, 5, 5), 1, 128, (1, 2, 2), (1, 3, 3))
    check(EmulatedOp("pool_tokens"), pool_arguments(make, sizes), seeds=(1,), shared_bytes=shared_bytes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_of_pool_tokens_in_16_bits(dtype: torch.dtype) -> None:
    args = pool_arguments(Maker(dtype, seed=9), (1, (2, 3, 4), 2, 8, (1, 1, 1), (1, 2, 2)))
    args = (*args[:2], *(p.to(dtype) for p in args[2:11]), *args[11:])
    check(EmulatedOp("pool_tokens"), args, seeds=TWO_SEEDS)


def test_pool_tokens_refuses_a_head_it_cannot_hold() -> None:
    args = pool_arguments(Maker(torch.float32), (1, (1, 1, 1), 1, 129, (1, 1, 1), (1, 1, 1)))
    with pytest.raises(RuntimeError, match=r"pool_tokens: qkv: expected head_dim <= 128 .* got 129"):
        EmulatedOp("pool_tokens").forward(*args)


def aligned_arguments(name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Sizes that 16-byte accesses fit."""
    make = Maker(dtype, seed=5)
    if name == "add_layer_norm":
        return _arguments.add_layer_norm(make, (2, 9, 32)).of(name)
    if name == "augment_clips":
        pixels = make.pixels(2, 2, 32, 32, 3)
        crops, steps = [[0, 0, 32, 32], [3, 5, 20, 16]], [[0, 1, 2, 3], [3, -1, 1, -1]]
        return _arguments.augment_clips(make, pixels, crops, steps, 32).of(name)
    if name == "pool_tokens":
        return pool_arguments(make, (1, (2, 3, 5), 1, 16, (1, 1, 1), (1, 2, 2)))
    if name == "lifting_attention":
        return (*(make.normal(1, 20, 1, 32) for _ in range(3)), 0.2)
    if name == "frame_correlation":
        return make.normal(1, 8, 64), 0.1
    if name == "lifting_loss":
        return make.normal(3, 40), 0.1, 1.0, True
    x = make.normal(1, 8, 4, 32)
    if name == "split_frames":
        index = [make.positions(1, 4, 8) for _ in range(2)]
        return _arguments.split_frames(make, x, *index).of(name)
    if name == "lifting_residual":
        return x, make.normal(1, 4, 4, 32)
    if name == "topk_split_index":
        return x, 2, 2, 1, False
    build = {"frame_tokens": _arguments.frame_tokens, "split_index": _arguments.split_index}[name]
    return build(make, x, 2, 2, 2, rows=7).of(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*.cu")))
def test_views_may_begin_anywhere(name: str, dtype: torch.dtype) -> None:
    args = aligned_arguments(name, dtype)
    check(EmulatedOp(name), args, seeds=(0,))
    check(EmulatedOp(name), args, seeds=TWO_SEEDS, moved=True)


def test_a_view_read_in_pairs_all_the_same_is_noticed() -> None:
    pairs = Plant("vector_fits<2>(call.grad[part], in.d)", "in.d % 2 == 0")
    with pytest.raises(RuntimeError, match=r"read_word .* not a multiple of 4"):
        check(
            EmulatedOp("pool_tokens", [pairs]), aligned_arguments("pool_tokens", torch.bfloat16), moved=True
        )


REFUSALS = [
    ("split_frames", 0, torch.randn(2, 8, 9), r"x: expected shape \(-1, -1, -1, -1\) .* got \(2, 8, 9\)"),
    (
        "split_frames",
        1,
        torch.zeros(2, 4, dtype=torch.int32),
        "static_index: expected dtype float32 or int64",
    ),
    ("split_frames", 3, torch.randn(19), r"static_norm_weight: expected shape \(20,\)"),
    ("frame_tokens", 1, torch.randn(7, 11), r"weight: expected shape \(-1, 12\)"),
    ("frame_tokens", 3, 6, "x: expected N = height"),
    ("split_index", 3, torch.randn(4, 63), r"static_weight: expected shape \(4, 64\)"),
    ("topk_split_index", 3, 0, "pool: expected 1 to 32767, got 0"),
    ("topk_split_index", 0, torch.randn(1, 8194, 49, 1), "x: expected at most 8192 frames"),
    ("split_frames", 1, torch.zeros(2, 2048), "static_index: expected at most 2048 indexes in both groups"),
    ("frame_correlation", 0, torch.randn(3, 4), "tokens: expected shape"),
    ("lifting_residual", 1, torch.randn(2, 4, 8, 6), r"approximation: expected shape \(2, -1, 9, 6\)"),
    ("lifting_loss", 2, 0.0, "beta: expected a positive number, got 0"),
    ("pool_tokens", 11, [2, 4, 5], r"qkv: expected 1 \+ T\*H\*W tokens for grid \(2, 4, 5\)"),
    ("pool_tokens", 2, torch.randn(8, 1, 3, 3), r"weight_q: expected shape \(8, 1, 3, 3, 3\)"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), REFUSALS)
def test_direct_calls_are_refused(name: str, place: int, value: Any, message: str) -> None:
    op = EmulatedOp(name)
    args = list(registry_sample(name, labels(name)[0], torch.float32).args)
    op.forward(*args)
    args[place] = value
    with pytest.raises(RuntimeError, match=f"ifdd::{name}: {message}"):
        op.forward(*args)
