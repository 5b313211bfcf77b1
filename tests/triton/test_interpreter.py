"""The interpreter's bfloat16 repair, against PyTorch's own bfloat16; and what it leaves out to be quick."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from ifdd_kernels.triton import interpreted
from ops.quick_interpreter import quick

pytestmark = pytest.mark.skipif(not interpreted(), reason="for Triton's interpreter")


@triton.jit
def _convert(x, y, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(y + i, tl.load(x + i).to(y.dtype.element_ty))


@triton.jit
def _multiply(a, b, c, size: tl.constexpr):
    i = tl.arange(0, size)
    place = i[:, None] * size + i[None, :]
    tl.store(c + place, tl.dot(tl.load(a + place), tl.load(b + place)))


@triton.jit
def _add(x, y, size: tl.constexpr):
    i = tl.arange(0, size)
    tl.store(y + i, tl.load(x + i) + tl.load(x + i))


def _run(kernel: Any, *tensors: Tensor, **constants: int) -> None:
    kernel[(1,)](*tensors, **constants)


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_conversions_round_as_pytorch(source: torch.dtype, target: torch.dtype) -> None:
    spread = 10.0 ** torch.linspace(-4, 4, 1024)
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0)) * spread
    ties = 1 + torch.arange(8) * 2**-8  # half-way between two bfloat16 numbers, every second one
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 3e38, 1e-40, -1e-7])
    x = torch.cat((values[:1008], ties, special)).to(source)
    y = torch.full_like(x, 7, dtype=target)
    _run(_convert, x, y, size=1024)
    torch.testing.assert_close(y, x.to(target), rtol=0, atol=0, equal_nan=True)


def test_dot_multiplies_values() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(32, 32, generator=generator).bfloat16() for _ in range(2))
    c = torch.full((32, 32), float("nan"))
    _run(_multiply, a, b, c, size=32)
    # Products of bfloat16 are exact in float32; sums of 32 of them err by a few ulps.
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=0, atol=32 * 2**-23 * 8)


def test_arithmetic_in_bfloat16_is_refused() -> None:
    x = torch.randn(8).bfloat16()
    with pytest.raises(Exception, match="convert to float32 first"):
        _run(_add, x, torch.empty_like(x), size=8)


@triton.jit
def _double(x):
    return x + x


@triton.jit
def _doubled(x, y):
    tl.store(y, _double(_double(tl.load(x))))


def test_a_function_that_calls_another_gives_the_same_when_quick() -> None:
    x, (slow, fast) = torch.tensor([2.0]), torch.zeros(2, 1)
    _run(_doubled, x, slow)
    with quick():
        _run(_doubled, x, fast)
        _run(_doubled, fast, fast)  # at a second launch, too
    assert (float(slow), float(fast)) == (8.0, 32.0)
