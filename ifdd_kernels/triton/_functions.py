"""Device functions several kernels share: activations in float32, windows of the adaptive pool."""

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
def window_start(cell, size: tl.constexpr, out: tl.constexpr):
    """First of the ``size`` cells of an axis that cell ``cell`` of ``out`` averages (adaptive pooling)."""
    return cell * size // out


@triton.jit
def window_stop(cell, size: tl.constexpr, out: tl.constexpr):
    """One past the last of them.

    With ``size`` and ``out`` exchanged, both bound the averages that a cell is part of.
    """
    return ((cell + 1) * size + out - 1) // out
