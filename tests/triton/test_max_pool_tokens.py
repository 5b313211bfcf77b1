"""Triton's max_pool_tokens where the registry's samples do not reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ops.triton_cases import DEVICE, device_tiles

ops = torch.ops.ifdd


def tied(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values of few distinct numbers, so that windows have ties; sums of a few of them are exact."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return ((values * 2).round() / 2).to(device=DEVICE, dtype=dtype)


@pytest.mark.parametrize("choice", range(2))
@pytest.mark.parametrize(
    ("stride", "dtype"),
    [
        ((1, 2, 2), torch.bfloat16),
        ((2, 3, 4), torch.float32),
        ((3, 1, 5), torch.float16),
        ((1, 1, 1), torch.bfloat16),
        ((9, 40, 2), torch.float32),
    ],
    ids=str,
)
def test_is_the_reference_bit_for_bit(stride: tuple[int, int, int], dtype: torch.dtype, choice: int) -> None:
    """Ties, both zeros, NaN, infinities, windows of one and of many cells, several programs on each axis."""
    from ifdd_kernels.triton import max_pool_tokens

    grid = (3, 9, 8)
    x = tied(2, 1 + 3 * 9 * 8, 131, dtype=dtype)
    x[:, 0, :2] = torch.tensor([-0.0, float("nan")])
    x[0, 7, 3], x[0, 9, 3], x[1, 100, 130] = float("nan"), float("nan"), float("inf")
    x[0, 1:60, 5] = -float("inf")
    expected, places = ops.max_pool_tokens_reference(x, grid, stride)
    grad = tied(*expected.shape, dtype=dtype, seed=1)
    with device_tiles(choice, max_pool_tokens):
        out, rows = ops.max_pool_tokens_triton(x, grid, stride)
        grad_x = ops.max_pool_tokens_backward_triton(grad, rows, grid, stride)
    assert torch.equal(rows, places)
    assert torch.equal(out.nan_to_num(nan=1e4), expected.nan_to_num(nan=1e4))
    assert torch.equal(torch.signbit(out[:, 0, 0]), torch.signbit(x[:, 0, 0]))
    assert torch.equal(grad_x, ops.max_pool_tokens_backward_reference(grad, rows, grid, stride))


def test_any_strides() -> None:
    """Tokens of a wider tensor, gradient and rows laid out as the other way round."""
    grid, stride = (2, 5, 6), (1, 2, 2)
    x = tied(61, 2, 24, dtype=torch.float32).transpose(0, 1)[:, :, 5:13]
    out, rows = ops.max_pool_tokens_triton(x, grid, stride)
    expected, places = ops.max_pool_tokens_reference(x, grid, stride)
    assert torch.equal(out, expected)
    assert torch.equal(rows, places)
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (out, rows)]
    actual = ops.max_pool_tokens_backward_triton(*turned, grid, stride)
    assert torch.equal(actual, ops.max_pool_tokens_backward_reference(out, rows, grid, stride))


def test_rows_that_are_none_get_nothing() -> None:
    """Rows that no window holds, as a caller of the raw op may pass."""
    grid, stride = (1, 4, 4), (1, 2, 2)
    grad = torch.ones(1, 5, 3, device=DEVICE)
    rows = torch.full((1, 4, 3), 1 << 30, dtype=torch.int32, device=DEVICE)
    rows[0, 0] = -5
    actual = ops.max_pool_tokens_backward_triton(grad, rows, grid, stride)
    assert actual[:, 0].eq(1).all()
    assert actual[:, 1:].eq(0).all()
