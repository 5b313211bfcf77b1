"""Definition of ``topk_split_index``."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels.reference._common import accumulator, pool_frames, pool_frames_backward


def topk_split_index(
    x: Tensor, height: int, width: int, pool: int, order_prior: bool
) -> tuple[Tensor, Tensor]:
    """Frames of the T/2 largest scores and of the T/2 smallest ones, each ascending in time.

    score_t = mean_u (z_t . z_u) / C = z_t . mean_u(z_u) / C, so the T x T products are never formed; with
    z = P x it is x_t . P^T P mean_u(x_u) / C. A sum of a frame's own products is the same for equal frames,
    wherever they are in the clip. A matrix product may round its rows differently, and equal scores would
    not be equal.
    """
    frames, channels = x.shape[1], x.shape[3]
    wide = x.to(accumulator(x.dtype))
    pooled = pool_frames(wide.mean(1, keepdim=True), height, width, pool)
    direction = pool_frames_backward(pooled, height, width, pool)
    products = (wide * direction).flatten(2).contiguous()
    score = products.sum(-1, dtype=torch.float64) / channels
    if order_prior:
        score = score + (torch.arange(frames, device=x.device) % 2 == 0).to(score.dtype)
    order = score.sort(dim=1, descending=True, stable=True).indices
    half = frames // 2
    return order[:, :half].sort(dim=1).values, order[:, half:].sort(dim=1).values
