"""Definition of ``lifting_attention``."""

from __future__ import annotations

from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def lifting_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v + v, heads joined (B, M, h*d), and the rows' log-sum-exp (B, h, M)."""
    dtype = accumulator(query.dtype)
    q, k, v = (part.to(dtype).transpose(1, 2) for part in (query, key, value))
    scores = (q @ k.mT) * scale
    log_sum = scores.logsumexp(-1)
    out = scores.softmax(-1) @ v + v
    return out.transpose(1, 2).flatten(2).to(query.dtype), log_sum


def lifting_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, log_sum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value; the probabilities are recomputed.

    ``log_sum`` is there for kernels that do not see whole rows at once, ``out`` for those that form
    rowsum(dP * P) as rowsum(grad_out * (out - v)) without a matrix. The softmax and the sum themselves, used
    here, carry neither the rounding of a large ``log_sum`` nor that of a 16-bit ``out``.
    """
    dtype = accumulator(query.dtype)
    q, k, v = (part.to(dtype).transpose(1, 2) for part in (query, key, value))
    g = grad_out.to(dtype).reshape(value.shape).transpose(1, 2)
    probability = ((q @ k.mT) * scale).softmax(-1)
    grad_probability = g @ v.mT
    delta = (grad_probability * probability).sum(-1, keepdim=True)
    grad_scores = probability * (grad_probability - delta) * scale
    grads = (grad_scores @ k, grad_scores.mT @ q, probability.mT @ g + g)
    grad_query, grad_key, grad_value = (part.transpose(1, 2).to(query.dtype) for part in grads)
    return grad_query, grad_key, grad_value
