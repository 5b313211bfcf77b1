"""Definition of ``split_frames``: sampling as a small matrix product, and the split norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import accumulator, layer_norm_backward, moments


class _Sampling(NamedTuple):
    """Linear interpolation along time as matrices, all (B, K, T)."""

    weights: Tensor  # y = weights x
    slope: Tensor  # dy / dp = slope x
    dp_di: Tensor  # (B, K): derivative of the position with respect to the index, zero where clamped or NaN


def _sampling(index: Tensor, frames: int, aligned: bool, dtype: torch.dtype) -> _Sampling:
    """P = clamp(i T/(T-1) - 1/2, 0, T-1), or clamp(i, 0, T-1) when ``aligned``; rows of two non-zeros.

    P = whole + rest with a whole frame number split off first: what is added to it is small, and so are
    its rounding error. As one product P would carry that of a number of the size of T.
    """
    last = frames - 1
    excess, shift = (0.0, 0.0) if aligned else (1 / last, 0.5)
    # Beyond these the position is clamped anyway; an infinite index would leave nothing.
    index = index.to(dtype).clamp(-1, last + 1)
    whole = index.floor()
    rest = (index - whole) + index * excess - shift
    below, above = whole + rest <= 0, whole + rest >= last
    step = rest.floor()
    # A position of NaN samples NaN, through its fraction.
    lower = (whole + step).nan_to_num().masked_fill(below, 0).masked_fill(above, last).long()
    fraction = (rest - step).masked_fill(below | above, 0)[..., None]
    low = F.one_hot(lower, frames).to(dtype)
    high = F.one_hot((lower + 1).clamp(max=last), frames).to(dtype)
    dp_di = (1 + excess) * (~(below | above | rest.isnan())).to(dtype)
    return _Sampling((1 - fraction) * low + fraction * high, high - low, dp_di)


def _weights(name: str, index: Tensor, frames: int, aligned: bool, dtype: torch.dtype) -> Tensor:
    """The (B, K, T) matrix that samples: a one-hot row for an integer index, two neighbours for a float."""
    if index.is_floating_point():
        return _sampling(index, frames, aligned, dtype).weights
    try:
        return F.one_hot(index, frames).to(dtype)
    except RuntimeError as error:
        if "Class values" not in str(error):
            raise
        message = f"split_frames: {name}: index out of range: expected 0 <= index < T = {frames}"
        raise RuntimeError(message) from None


def split_frames(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    eps: float,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both groups (B, K, N, C) and the norms' statistics (B, Ks + Kd, N, 2), empty without norms."""
    batch, frames, tokens, channels = x.shape
    dtype = accumulator(x.dtype)
    flat = x.to(dtype).reshape(batch, frames, tokens * channels)

    groups, statistics = [], []
    for name, index, weight, bias in (
        ("static_index", static_index, static_norm_weight, static_norm_bias),
        ("dynamic_index", dynamic_index, dynamic_norm_weight, dynamic_norm_bias),
    ):
        group = _weights(name, index, frames, aligned, dtype) @ flat
        group = group.reshape(batch, index.shape[1], tokens, channels)
        if weight is not None and bias is not None:
            mean, rstd = moments(group, eps)
            group = (group - mean) * rstd * weight.to(dtype) + bias.to(dtype)
            statistics.append(torch.cat((mean, rstd), -1))
        groups.append(group.to(x.dtype))
    stats = torch.cat(statistics, 1) if statistics else flat.new_empty(0)
    return groups[0], groups[1], stats


def split_frames_backward(
    grad_static_frames: Tensor,
    grad_dynamic_frames: Tensor,
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_norm_weight: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    stats: Tensor,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, both indexes and the four norm parameters; what does not exist is empty.

    dx = weights^T dy, summed over both groups; di = dp/di * <dy, slope x>.
    """
    batch, frames, tokens, channels = x.shape
    dtype = accumulator(x.dtype)
    flat = x.to(dtype).reshape(batch, frames, tokens * channels)
    grad_x = torch.zeros_like(flat)
    grad_index: list[Tensor] = []
    grad_norm: list[Tensor] = []
    first = 0
    for name, grad, index, weight in (
        ("static_index", grad_static_frames, static_index, static_norm_weight),
        ("dynamic_index", grad_dynamic_frames, dynamic_index, dynamic_norm_weight),
    ):
        count = index.shape[1]
        grad = grad.to(dtype)
        weights = _weights(name, index, frames, aligned, dtype)
        if weight is None:
            grad_norm += [x.new_empty(0), x.new_empty(0)]
        else:
            mean, rstd = stats[:, first : first + count].split(1, -1)
            sampled = (weights @ flat).reshape(grad.shape)
            grad, grad_weight, grad_bias = layer_norm_backward(
                grad, (sampled - mean) * rstd, rstd, weight.to(dtype)
            )
            grad_norm += [grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)]
        dy = grad.reshape(batch, count, tokens * channels)
        grad_x = grad_x + weights.mT @ dy
        if index.is_floating_point():
            sampling = _sampling(index, frames, aligned, dtype)
            along = (dy * (sampling.slope @ flat)).sum(-1)
            grad_index.append((along * sampling.dp_di).to(index.dtype))
        else:
            grad_index.append(flat.new_empty(0))
        first += count
    return (
        grad_x.reshape(x.shape).to(x.dtype),
        grad_index[0],
        grad_index[1],
        grad_norm[0],
        grad_norm[1],
        grad_norm[2],
        grad_norm[3],
    )
