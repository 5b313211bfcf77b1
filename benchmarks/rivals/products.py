"""Plain matrix products of a case's FLOPs, by PyTorch's library: what its best routine takes for as much.

A bound for what multiplies with that library. Kernels of other libraries, or of this one, can be faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs

LARGEST_SIDE = 2048


def shape_of(flops: int) -> tuple[int, int]:
    """Number and side of square products of at most :data:`LARGEST_SIDE` rows that have these FLOPs."""
    count = max(1, math.ceil(flops / (2 * LARGEST_SIDE**3)))
    return count, max(1, round((flops / (2 * count)) ** (1 / 3)))


def contender(flops: Callable[[Inputs], int]) -> Contender:
    """PyTorch's products in the run's precision, on matrices that are in it already."""

    def bind(inputs: Inputs) -> Bound:
        count, side = shape_of(flops(inputs))
        device = next(iter(inputs.activations.values())).device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else torch.float32
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)

        def run(*_: Tensor) -> Outputs:
            for _ in range(count):
                torch.matmul(a, b, out=out)
            return (out,)

        return Bound(run, {})

    return Contender("products", bind, limit=True)
