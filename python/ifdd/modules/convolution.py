"""Convolutions that a CPU computes in float32 where that is faster than its 16-bit ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ifdd.modules.lowered import lowered_weight
from ifdd_kernels.ops.linear import faster_in_float32, product_dtype

Function = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def convolve(function: Function, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """function(x, weight, bias), a convolution; in float32 and rounded once on CPUs slow in 16 bits.

    On an Intel Xeon without AMX that took half to two thirds of the time. The result has the dtype it has
    elsewhere: autocast's, or x's.
    """
    dtype = product_dtype(x)
    if x.device.type != "cpu" or not faster_in_float32(dtype):
        return function(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        return function(x.float(), weight.float(), bias if bias is None else bias.float()).to(dtype)


class Conv2d(nn.Conv2d):
    """As `torch.nn.Conv2d`, by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        bias = None if self.bias is None else lowered_weight(self.bias)
        return convolve(self._conv_forward, x, lowered_weight(self.weight), bias)


class Conv3d(nn.Conv3d):
    """As `torch.nn.Conv3d`, by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        bias = None if self.bias is None else lowered_weight(self.bias)
        return convolve(self._conv_forward, x, lowered_weight(self.weight), bias)
