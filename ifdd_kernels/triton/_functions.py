"""Device functions several kernels share: activations in float32, rounding, windows of the adaptive pool."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """The exact GELU, x Phi(x)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """Its derivative, Phi(x) + x phi(x)."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def tanh(x):
    """Tanh, within a rounding of 1 everywhere; Triton's own needs libdevice, which no interpreter has."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def to_tf32(x):
    """float32 rounded to the 10 bits after the point that TF32 has, ties to even.

    Tensor cores read the upper 19 bits of a float32 factor and drop the rest: without rounding, numbers
    shrink by up to 2^-10 of their size, half of that on average, and sums are biased.
    """
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def window_start(cell, size: tl.constexpr, out: tl.constexpr):
    """First of the ``size`` cells of an axis that cell ``cell`` of ``out`` averages (adaptive pooling)."""
    return cell * size // out


@triton.jit
def window_stop(cell, size: tl.constexpr, out: tl.constexpr):
    """One past the last of them.

    With ``size`` and ``out`` exchanged, both bound the averages that a cell is part of.
    """
    return ((cell + 1) * size + out - 1) // out
