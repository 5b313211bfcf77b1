"""Definition of ``frame_correlation``."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def frame_correlation(tokens: Tensor, scale: float) -> Tensor:
    """Scale * z z^T per clip: (B, T, D) -> (B, T, T)."""
    z = tokens.to(accumulator(tokens.dtype))
    return (z @ z.mT) * scale


def frame_correlation_backward(grad_correlation: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """Dz = scale * (G + G^T) z."""
    z = tokens.to(accumulator(tokens.dtype))
    grad_correlation = grad_correlation.to(z.dtype)
    return (((grad_correlation + grad_correlation.mT) @ z) * scale).to(tokens.dtype)
