"""Triton's split_frames where the registry's samples do not reach: long clips, borders, bad indexes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels.registry import Maker
from ifdd_kernels.testing import poisoned_memory
from ops.cases import nightly
from ops.triton_cases import DEVICE, DTYPES, check, device_tiles, strided_frames


def _arguments(
    make: Maker,
    shape: tuple[int, int, int, int],
    counts: tuple[int, int],
    *,
    floating: bool = True,
    norm: bool = True,
    aligned: bool = False,
) -> tuple[Any, ...]:
    batch, frames, _, channels = shape
    place = make.positions if floating else make.frame_numbers
    index = [place(batch, count, frames) for count in counts]
    norms: list[Any] = [None] * 4
    if norm:
        norms = [make.parameter(channels, mean=mean, scale=0.3) for mean in (1.0, 0.0, 1.0, 0.0)]
    return make.normal(*shape), *index, *norms, 1e-5, aligned


@pytest.mark.parametrize("dtype", [*map(nightly, DTYPES)], ids=str)
def test_shapes_like_the_networks(dtype: torch.dtype) -> None:
    check("split_frames", *_arguments(Maker(dtype, DEVICE), (1, 8, 49, 96), (4, 4)))


@pytest.mark.parametrize(
    ("shape", "counts", "options"),
    [
        nightly((1, 128, 1, 9), (20, 9), {}),
        ((2, 30, 1, 5), (3, 27), {"aligned": True}),
        ((1, 1, 3, 1), (2, 1), {"floating": False}),
        ((1, 2, 1, 1), (1, 1), {}),
        ((2, 17, 3, 257), (1, 2), {"floating": False, "norm": False}),
        ((3, 5, 7, 33), (4, 1), {"norm": False}),
    ],
    ids=str,
)
def test_any_size(shape: Any, counts: Any, options: dict[str, bool]) -> None:
    for dtype in (torch.float32, torch.bfloat16)[: 1 if shape[1] == 128 else 2]:
        check("split_frames", *_arguments(Maker(dtype, DEVICE, seed=3), shape, counts, **options))


@pytest.mark.parametrize(
    ("choice", "norm"),
    [nightly(choice, norm, when=norm != (choice == 0)) for choice in range(4) for norm in (False, True)],
)
def test_tiles_of_every_configuration(choice: int, norm: bool) -> None:
    from ifdd_kernels.triton import split_frames

    with device_tiles(choice, split_frames):
        # Ten frames are two runs of dx; 11 positions are not a multiple of a tile, nor is 300 channels.
        check("split_frames", *_arguments(Maker(torch.float32, DEVICE), (1, 10, 7, 20), (2, 3), norm=norm))
        check("split_frames", *_arguments(Maker(torch.float32, DEVICE), (1, 3, 2, 300), (1, 2), norm=norm))


def test_sums_of_many_rows() -> None:
    """More output rows than a program sums: three programs, the last with fewer, none for the other group."""
    make = Maker(torch.float32, DEVICE)
    check("split_frames", *_arguments(make, (1, 2, 4, 3), (5, 1)))


def test_positions_of_long_clips_are_exact() -> None:
    """Within a rounding of a fraction, not of a position: 128 frames err no more than 8."""
    for frames in (8, 128):
        make = Maker(torch.float32, DEVICE)
        ramp = torch.arange(frames, dtype=torch.float32, device=DEVICE) % 2  # each step is a whole fraction
        index = make.positions(1, 64, frames)
        out, _, _ = torch.ops.ifdd.split_frames_triton(
            ramp.view(1, -1, 1, 1), index, index[:, :1], *[None] * 4, 1e-5, False
        )
        position = (index.double() * frames / (frames - 1) - 0.5).clamp(0, frames - 1)
        exact = 1 - (position % 2 - 1).abs()
        error = (out.flatten().double() - exact.flatten()).abs().max()
        assert error <= 4 * torch.finfo(torch.float32).eps


def test_frames_with_strides_are_read_in_place() -> None:
    """The values of a contiguous copy, bit for bit; channels that are not dense are copied."""
    make = Maker(torch.float32, DEVICE)
    x = strided_frames(make)
    args = _arguments(make, (2, 4, 9, 20), (2, 2))[1:]
    op = torch.ops.ifdd.split_frames_triton
    for got, wanted in zip(op(x, *args), op(x.contiguous(), *args), strict=True):
        assert torch.equal(got, wanted)
    check("split_frames", x, *args)
    check("split_frames", make.strided(2, 4, 9, 20), *args)


def _leaves(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )


@pytest.mark.parametrize("norm", [False, True])
def test_a_clamped_position_has_no_gradient(norm: bool) -> None:
    x, _, _, *rest = _arguments(Maker(torch.float32, DEVICE), (1, 8, 5, 12), (4, 4), norm=norm)
    ends = torch.tensor([[0.0, 0.1, 6.9, 7.0]], device=DEVICE)  # -1/2, below 0, above 7, 7 1/2
    inner = torch.tensor([[0.6, 3.0, 4.2, 6.5]], device=DEVICE)
    args = _leaves((x, ends, inner, *rest))
    static, dynamic, _ = torch.ops.ifdd.split_frames_triton(*args)
    torch.sum(static * torch.randn_like(static) + dynamic * torch.randn_like(dynamic)).backward()
    assert (args[1].grad == 0).all()
    assert (args[2].grad != 0).all()


@pytest.mark.parametrize("floating", [False, True])
def test_what_is_no_frame_gives_nan_and_only_there(floating: bool) -> None:
    """A device cannot raise without being waited for; neighbours and other clips stay what they were."""
    args = list(_arguments(Maker(torch.float32, DEVICE), (2, 6, 3, 8), (3, 3), floating=floating))
    op = torch.ops.ifdd.split_frames_triton
    clean = op(*args)
    args[1] = args[1].clone()
    args[1][0, 1] = float("nan") if floating else 6
    args[2] = args[2].clone()
    args[2][1, 2] = float("nan") if floating else -1
    with poisoned_memory():
        static, dynamic, _ = op(*args)
    bad_static, bad_dynamic = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    bad_static[0, 1] = bad_dynamic[1, 2] = True
    for got, wanted, bad in ((static, clean[0], bad_static), (dynamic, clean[1], bad_dynamic)):
        assert got[bad].isnan().all()
        assert torch.equal(got[~bad], wanted[~bad])


def test_infinite_positions_are_clamped() -> None:
    args = list(_arguments(Maker(torch.float32, DEVICE), (1, 4, 3, 8), (2, 2), norm=False))
    args[1] = torch.tensor([[float("inf"), -float("inf")]], device=DEVICE)
    static, _, _ = torch.ops.ifdd.split_frames_triton(*args)
    assert torch.equal(static, args[0][:, [3, 0]])


def test_a_frame_that_is_not_finite_stays_where_it_is_used() -> None:
    """Gathered, not multiplied by zero: forward and backward."""
    args = list(_arguments(Maker(torch.float32, DEVICE), (1, 8, 3, 8), (2, 2)))
    args[0][0, 7] = float("nan")
    args[1] = torch.tensor([[1.0, 2.2]], device=DEVICE)
    args[2] = torch.tensor([[3.1, 6.9]], device=DEVICE)
    args = list(_leaves(tuple(args)))
    static, dynamic, _ = torch.ops.ifdd.split_frames_triton(*args)
    assert not static.isnan().any()
    assert not dynamic[0, 0].isnan().any()
    assert dynamic[0, 1].isnan().all()
    grads = torch.randn_like(static), torch.randn_like(dynamic)
    torch.autograd.backward((static, dynamic), grads)
    # Position 6.9 * 8/7 - 1/2 is clamped to frame 7: its gradient is the only one that is not finite.
    assert not args[0].grad[0, :7].isnan().any()
    assert args[0].grad[0, 7].isnan().all()
