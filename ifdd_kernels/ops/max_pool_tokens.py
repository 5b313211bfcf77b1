"""``max_pool_tokens``: the max-pooling of an MViTv2 block's shortcut, in token layout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ifdd_kernels import _check, reference
from ifdd_kernels._operator import Backward, register
from ifdd_kernels.backends import run
from ifdd_kernels.grids import pooled_grid
from ifdd_kernels.triton import twin


def _check_arguments(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> None:
    op = "max_pool_tokens"
    _check.triple(op, "grid", grid)
    _check.triple(op, "stride", stride)
    _check.shape(op, "x", x, ("B", 1 + math.prod(grid), "C"))
    _check.floating(op, "x", x)
    if x.shape[1] >= 2**31:
        raise ValueError(f"{op}: x must have fewer than 2**31 tokens, got {x.shape[1]}")


def _fake(x: Tensor, grid: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, _, channels = x.shape
    cells = math.prod(pooled_grid(grid, stride))
    rows = x.new_empty(batch, cells, channels, dtype=torch.int32)
    return x.new_empty(batch, 1 + cells, channels), rows


def _fake_backward(grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    return grad_out.new_empty(grad_out.shape[0], 1 + math.prod(grid), grad_out.shape[2])


def _stand_in(grad_out: Tensor, grid: Sequence[int]) -> Tensor:
    """Of the shape of x, which backward is not given, for its checks."""
    op = "max_pool_tokens"
    _check.triple(op, "grid", grid)
    _check.shape(op, "grad_out", grad_out, ("B", "1+N'", "C"))
    batch, _, channels = grad_out.shape
    _check.extent(op, "grid", (batch, 1 + math.prod(grid), channels))
    return grad_out.new_empty(1, 1, 1, device="meta").expand(batch, 1 + math.prod(grid), channels)


OPERATOR = register(
    "max_pool_tokens",
    "(Tensor x, int[3] grid, int[3] stride) -> (Tensor out, Tensor rows)",
    reference=reference.max_pool_tokens,
    fake=_fake,
    check=_check_arguments,
    backward=Backward(
        schema="(Tensor grad_out, Tensor rows, int[3] grid, int[3] stride) -> Tensor grad_x",
        reference=reference.max_pool_tokens_backward,
        fake=_fake_backward,
        missing={"x": _stand_in},
    ),
    backends={"triton": twin("max_pool_tokens")},
    non_differentiable=("rows",),
)


def max_pool_tokens(
    x: Tensor, grid: Sequence[int], stride: Sequence[int], *, backend: str = "auto"
) -> Tensor:
    r"""Max-pooling of tokens with a window of stride + 1 cells along every strided axis.

    .. math:: y_{oc} = \max_{i \in W(o)} x_{ic}, \qquad
        W(o) = \{so - \lfloor k/2 \rfloor, \dots, so - \lfloor k/2 \rfloor + k - 1\}, \quad
        k = s + 1 \text{ where } s > 1, \text{ else } 1

    on each axis, cells outside the grid left out. The class token (row 0) is kept as it is.

    Args:
        x: (B, 1 + T*H*W, C), rows in (T, H, W) order behind the class token; float16 to float64, any strides.
        grid: (T, H, W).
        stride: (time, height, width) stride.
        backend: see :mod:`ifdd_kernels.backends`.

    Returns:
        (B, 1 + N', C) in x's dtype, on the grid ceil(size / stride). A NaN in a window is its maximum.

    The gradient flows to the largest value of each window, the first of equal ones in (T, H, W) order. Kept
    for it is one int32 a result, not x. Deterministic on the CPU.

    Raises:
        ValueError: a shape, grid or stride that does not fit.
        TypeError: a dtype that does not.

    Source: Li et al., "MViTv2", CVPR 2022, arXiv:2112.01526 (pooled shortcut).
    """
    grid, stride = _check.triple(OPERATOR.name, "grid", grid), _check.triple(OPERATOR.name, "stride", stride)
    pooled: Tensor = run(OPERATOR, backend, x, grid, stride)[0]
    return pooled
