"""TF32 products take rounded factors, not cut ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.grids import table_length
from ifdd_kernels.registry import REGISTRY
from ifdd_kernels.triton import interpreted
from ifdd_kernels.triton._functions import to_tf32
from ops.interpreter_tf32 import cut, truncating

pytestmark = pytest.mark.skipif(not interpreted(), reason="the model of a tensor core is the interpreter's")


@triton.jit
def _round(x, y, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(y + i, to_tf32(tl.load(x + i)))


def _rounded(x: Tensor) -> Tensor:
    y = torch.full_like(x, float("nan"))
    _round[(1,)](x, y, size=x.numel())
    return y


@pytest.mark.parametrize("exponents", [(-120, 120), (-149, -118)], ids=["normal", "subnormal"])
def test_rounding_is_to_the_nearest_number_of_tf32(exponents: tuple[int, int]) -> None:
    x = torch.randn(1 << 12).double()
    x = torch.from_numpy(np.ldexp(x.numpy(), np.random.randint(*exponents, 1 << 12))).float()
    y = _rounded(x)
    assert torch.equal(torch.from_numpy(cut(y.numpy())), y), "tensor cores would cut it again"
    # 10 bits after the leading one; below 2^-126 the spacing stays that of 2^-126
    exponent = np.maximum(np.frexp(x.double().numpy())[1], -125)
    step = torch.from_numpy(np.ldexp(1.0, exponent - 11))
    assert torch.equal(y.double(), torch.round(x.double() / step) * step)  # torch.round takes ties to even


def test_rounding_keeps_what_is_no_number() -> None:
    bits = np.array([0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0, 0x80000000, 1], np.uint32)
    x = torch.from_numpy(bits.view(np.float32))
    y = _rounded(x)
    assert y[:2].tolist() == [float("inf"), float("-inf")]
    assert y[2:5].isnan().all()
    assert y[5:].tolist() == [0.0, 0.0, 0.0]
    ties = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11], dtype=torch.float32).repeat(4)
    assert _rounded(ties)[:2].tolist() == [1.0, 1 + 2**-9]


def _case(dtype: torch.dtype, wide: float) -> tuple[tuple[Tensor, ...], list[int], list[int]]:
    """Scores that the position bias makes: queries of one sign against tables of one sign."""
    generator = torch.Generator().manual_seed(2)
    q_grid, k_grid, heads, width = [2, 4, 4], [2, 2, 2], 1, 96

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows = [
        tensor(1, 33, heads, width).abs() / 4,
        tensor(1, 9, heads, width) / 64,
        tensor(1, 9, heads, width),
    ]
    tables = [
        wide * (1 + tensor(table_length(q_grid[axis], k_grid[axis]), width).abs()) for axis in (1, 2, 0)
    ]
    return (*(row.to(dtype) for row in rows), *tables), q_grid, k_grid


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tables_of_16_bit_queries_are_not_cut(dtype: torch.dtype) -> None:
    """log_sum, whose bias is a sum of products with float32 tables, errs as if the tables were rounded.

    Rounding moves a product by 2^-12 or so of its size, up or down; cutting by twice that, always down. So
    the mean over the queries tells them apart: the bound is a fourth of what cut tables lose.
    """
    tensors, q_grid, k_grid = _case(dtype, 0.5)
    entry = REGISTRY["pooled_attention"]
    assert entry.operator is not None
    rest = (q_grid, k_grid, 96**-0.5)
    exact = entry.reference(*(t.double() for t in tensors), *rest)[1]
    lossy = [t if i < 3 else torch.from_numpy(cut(t.numpy())) for i, t in enumerate(tensors)]
    lost = (entry.reference(*(t.double() for t in lossy), *rest)[1] - exact)[..., 1:].mean().abs()
    with truncating() as products:
        log_sum = entry.operator.overload("triton")(*tensors, *rest)[1]
    assert any(products), "no TF32 product ran: the test shows nothing"
    error = (log_sum.double() - exact)[..., 1:].mean().abs()
    assert error <= lost / 4, f"error {error:.2e}, cut tables lose {lost:.2e}"


def test_gradients_through_the_tables_are_not_cut() -> None:
    tensors, q_grid, k_grid = _case(torch.bfloat16, 0.5)
    entry = REGISTRY["pooled_attention"]
    assert entry.operator is not None
    rest = (q_grid, k_grid, 96**-0.5)
    out, log_sum = entry.operator.overload("reference")(*tensors, *rest)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(out)
    arguments = (grad, *tensors, out, log_sum, *rest)
    backward = entry.operator.overload("triton", backward=True)
    plain = backward(*arguments)
    with truncating() as products:
        cutting = backward(*arguments)
    assert any(products)
    for one, other in zip(plain, cutting, strict=True):
        assert one.abs().sum() > 0
        # The factors were rounded before: of them a tensor core drops nothing.
        assert torch.equal(one, other)
