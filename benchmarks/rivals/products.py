"""Plain matrix products of a case's FLOPs, by PyTorch's library: what its best routine takes for as much.

A bound for what multiplies with that library. Kernels of other libraries, or of this one, can be faster.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs

LARGEST_SIDE = 2048


def shape_of(flops: int) -> tuple[int, int, int]:
    """Number and side of whole square products, and rows of one more, that have these FLOPs together.

    The side is a power of two: on an AMD Zen 3, PyTorch's products of 2006 rows ran at 60 GFLOP/s per core,
    those of 2048 at 80.
    """
    side = LARGEST_SIDE
    while 2 * side**3 > flops and side > 1:
        side //= 2
    count, rest = divmod(flops, 2 * side**3)
    return count, side, round(rest / (2 * side**2))


def contender(flops: Callable[[Inputs], int]) -> Contender:
    """PyTorch's products in the run's precision, on matrices that are in it already."""

    def bind(inputs: Inputs) -> Bound:
        count, side, rows = shape_of(flops(inputs))
        device = next(iter(inputs.activations.values())).device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else torch.float32
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def run(*_: Tensor) -> Outputs:
            for _ in range(count):
                torch.matmul(a, b, out=out)
            torch.matmul(a[:rows], b, out=out[:rows])
            return (out,)

        return Bound(run, {})

    return Contender("products", bind, limit=True)
