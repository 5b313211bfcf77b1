"""Definition of ``split_index``: tokenizer, correlation, the two softmaxes and the offsets."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels.reference.frame_correlation import frame_correlation, frame_correlation_backward
from ifdd_kernels.reference.frame_tokens import frame_tokens, frame_tokens_backward


def _offset(correlation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The row softmax of the correlation (B, T, T) and tanh(weight . vec(softmax)) (B, T/2)."""
    attention = correlation.softmax(-1)
    return attention, torch.tanh(attention.flatten(1) @ weight.to(attention.dtype).T)


def _offset_backward(grad: Tensor, correlation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the correlation and of the weight through :func:`_offset`."""
    attention, offset = _offset(correlation, weight)
    inner = grad * (1 - offset.square())
    grad_weight = inner.T @ attention.flatten(1)
    grad_attention = (inner @ weight.to(inner.dtype)).reshape(attention.shape)
    centred = grad_attention - (grad_attention * attention).sum(-1, keepdim=True)
    return attention * centred, grad_weight.to(weight.dtype)


def split_index(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Even frames + reach * offset(+M), odd frames + reach * offset(-M), and the correlation M."""
    frames, channels = x.shape[1], x.shape[3]
    tokens = frame_tokens(x, token_weight, token_bias, height, width, pool)
    correlation = frame_correlation(tokens, 1.0 / channels)
    even = torch.arange(0, frames, 2, device=x.device, dtype=correlation.dtype)
    static = even + reach * _offset(correlation, static_weight)[1]
    dynamic = even + 1 + reach * _offset(-correlation, dynamic_weight)[1]
    return static, dynamic, correlation


def split_index_backward(
    grad_static_index: Tensor,
    grad_dynamic_index: Tensor,
    grad_correlation: Tensor,
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    correlation: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, token_weight, token_bias, static_weight and dynamic_weight."""
    dtype = correlation.dtype
    from_static, grad_static_weight = _offset_backward(
        reach * grad_static_index.to(dtype), correlation, static_weight
    )
    from_dynamic, grad_dynamic_weight = _offset_backward(
        reach * grad_dynamic_index.to(dtype), -correlation, dynamic_weight
    )
    grad_total = grad_correlation.to(dtype) + from_static - from_dynamic
    tokens = frame_tokens(x, token_weight, token_bias, height, width, pool)
    grad_tokens = frame_correlation_backward(grad_total, tokens, 1.0 / x.shape[3])
    grad_x, grad_token_weight, grad_token_bias = frame_tokens_backward(
        grad_tokens, x, token_weight, token_bias, height, width, pool
    )
    return grad_x, grad_token_weight, grad_token_bias, grad_static_weight, grad_dynamic_weight
