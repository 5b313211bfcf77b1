"""Definition of ``split_index``: tokenizer, correlation, the two softmaxes and the offsets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ifdd_kernels.reference.frame_correlation import frame_correlation, frame_correlation_backward
from ifdd_kernels.reference.frame_tokens import frame_tokens, frame_tokens_backward

Product = Callable[[Tensor], Tensor]


def _product(weight: Tensor) -> Product:
    """The product of flat rows (B, K) with a weight (M, K)."""
    return lambda rows: rows @ weight.to(rows.dtype).T


def _offset(correlation: Tensor, product: Product) -> tuple[Tensor, Tensor]:
    """The row softmax of the correlation (B, T, T) and tanh(product(vec(softmax))) (B, T/2)."""
    attention = correlation.softmax(-1)
    return attention, torch.tanh(product(attention.flatten(1)))


def positions(
    correlation: Tensor, static_product: Product, dynamic_product: Product, reach: float
) -> tuple[Tensor, Tensor]:
    """Even frames + reach * offset(+M), odd frames + reach * offset(-M): (B, T/2) each.

    Args:
        correlation: M, (B, T, T).
        static_product: from (B, T*T) to (B, T/2), linear.
        dynamic_product: the same of the dynamic group.
        reach: how many frames a position may move either way.
    """
    even = torch.arange(0, correlation.shape[1], 2, device=correlation.device, dtype=correlation.dtype)
    static = even + reach * _offset(correlation, static_product)[1]
    dynamic = even + 1 + reach * _offset(-correlation, dynamic_product)[1]
    return static, dynamic


def _offset_backward(grad: Tensor, correlation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the correlation and of the weight through :func:`_offset`."""
    attention, offset = _offset(correlation, _product(weight))
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
    tokens = frame_tokens(x, token_weight, token_bias, height, width, pool)
    correlation = frame_correlation(tokens, 1.0 / x.shape[3])
    static, dynamic = positions(correlation, _product(static_weight), _product(dynamic_weight), reach)
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
