"""Triton's lifting residual and loss where the registry's samples do not reach."""

from __future__ import annotations

import pytest
import torch

from ifdd_kernels.registry import Maker
from ops.triton_cases import DEVICE, DTYPES, check, device_tiles, strided_frames


@pytest.mark.parametrize("shape", [(2, 8, 49, 96), (1, 2, 1, 1), (1, 128, 5, 100), (1, 7, 3, 1030)], ids=str)
def test_residual(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        make = Maker(dtype, DEVICE, seed=shape[1])
        check("lifting_residual", make.normal(*shape), make.normal(shape[0], 3, *shape[2:]))


def test_residual_of_two_precisions() -> None:
    x = Maker(torch.bfloat16, DEVICE).normal(2, 4, 3, 20)
    check("lifting_residual", x, Maker(torch.float32, DEVICE).normal(2, 2, 3, 20))
    check("lifting_residual", x.float(), x[:, 1:])


def test_residual_reads_strided_frames() -> None:
    make = Maker(torch.float32, DEVICE)
    x = strided_frames(make)
    check("lifting_residual", x, x[:, ::2])
    check("lifting_residual", make.strided(2, 4, 9, 20), x)


@pytest.mark.parametrize("choice", range(3))
def test_tiles_of_every_configuration(choice: int) -> None:
    from ifdd_kernels.triton import lifting_loss, lifting_residual

    make = Maker(torch.float32, DEVICE)
    with device_tiles(choice, lifting_loss, lifting_residual):
        check("lifting_residual", make.normal(1, 11, 3, 1100), make.normal(1, 3, 3, 1100))
        check("lifting_loss", make.normal(3, 7000), 0.1, 1.0, False)  # three chunks


@pytest.mark.parametrize("shape", [(16, 7, 7), (5, 2), (1, 70_000), (3, 31, 1, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_in_chunks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for beta, mean in ((1.0, False), (0.3, True)):
        check("lifting_loss", Maker(dtype, DEVICE, seed=3).normal(*shape, scale=2.0), 0.1, beta, mean)


def test_losses_of_nothing() -> None:
    loss = torch.ops.ifdd.lifting_loss_triton
    assert loss(torch.randn(0, 3, device=DEVICE), 1.0, 1.0, False) == 0
    assert loss(torch.randn(0, 3, device=DEVICE), 1.0, 1.0, True).isnan()
    assert loss(torch.randn(2, 0, device=DEVICE), 1.0, 1.0, False).isnan()
    one, none = torch.ones((), device=DEVICE), torch.randn(2, 0, device=DEVICE)
    assert torch.ops.ifdd.lifting_loss_backward_triton(one, none, 1.0, 1.0, False).shape == (2, 0)


def test_a_residual_that_is_not_a_number_keeps_its_gradient_so() -> None:
    residual = torch.tensor([[0.5, float("nan"), -3.0]], device=DEVICE, requires_grad=True)
    loss = torch.ops.ifdd.lifting_loss_triton(residual, 1.0, 1.0, False)
    assert loss.isnan()
    loss.backward()
    assert residual.grad is not None
    torch.testing.assert_close(
        residual.grad, torch.tensor([[0.5, float("nan"), -1.0]], device=DEVICE) / 3, equal_nan=True
    )
