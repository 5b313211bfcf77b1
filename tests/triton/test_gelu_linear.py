"""Triton's gelu_linear where the registry's samples do not reach."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ifdd_kernels.registry import Maker
from ops.triton_cases import DEVICE, check, device_tiles

ops = torch.ops.ifdd


@pytest.mark.parametrize("choice", range(2))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiles_of_every_configuration(choice: int, dtype: torch.dtype) -> None:
    """Hidden values that fill several programs and no whole number of them."""
    from ifdd_kernels.triton import gelu_linear

    make = Maker(dtype, DEVICE, seed=choice)
    with device_tiles(choice, gelu_linear):
        check("gelu_linear", make.normal(7, 13, 52), make.normal(5, 52) / 7, make.normal(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_slope_is_that_of_pytorch_everywhere(dtype: torch.dtype) -> None:
    """Tails, zeros, infinities and NaN: with the identity as weight the gradient is GELU'."""
    x = torch.cat((torch.linspace(-13, 13, 1001), torch.tensor([0.0, -0.0, float("nan")])))
    x = x.to(device=DEVICE, dtype=dtype)[:, None]
    one, grad = torch.ones(1, 1, device=DEVICE, dtype=dtype), torch.ones_like(x)
    actual, grad_weight, grad_bias = ops.gelu_linear_backward_triton(grad, x, one)
    expected = torch.ops.aten.gelu_backward(grad, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * torch.finfo(dtype).eps, equal_nan=True)
    assert grad_weight.isnan().all()
    assert torch.equal(grad_bias, grad.sum(0))
    whole = x[:-1]
    _, grad_weight, _ = ops.gelu_linear_backward_triton(grad[:-1], whole, one)
    torch.testing.assert_close(grad_weight, grad[:-1].T @ F.gelu(whole), rtol=1e-3, atol=0)


def test_hidden_values_of_any_strides() -> None:
    make = Maker(torch.float32, DEVICE)
    x, weight, bias = make.normal(24, 6, 3).permute(2, 1, 0), make.normal(4, 24), make.normal(4)
    check("gelu_linear", x, weight, bias)
    grads = ops.gelu_linear_backward_triton(make.normal(3, 4, 6).transpose(1, 2), x, weight)
    assert [tuple(g.shape) for g in grads] == [(3, 6, 24), (4, 24), (4,)]
