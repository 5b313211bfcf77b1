"""Triton kernels of ``lifting_attention``: the shared attention without positions, values as the residual."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels.triton import _attention
from ifdd_kernels.triton._runtime import contiguous_channels

_NO_GRID = (0, 0, 0)


def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The op's result and log-sum-exp; arguments of its schema."""
    query, key, value = (contiguous_channels(part) for part in (query, key, value))
    return _attention.forward(query, key, value, None, _NO_GRID, scale)


def backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; arguments of the backward op's schema."""
    query, key, value = (contiguous_channels(part) for part in (query, key, value))
    return _attention.backward(grad_out, query, key, value, None, out, log_sum, _NO_GRID, scale)[:3]
