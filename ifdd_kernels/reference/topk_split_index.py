"""Definition of ``topk_split_index``."""

from __future__ import annotations

import torch
from torch import Tensor

from ifdd_kernels.reference._common import pool_frames


def topk_split_index(
    x: Tensor, height: int, width: int, pool: int, order_prior: bool
) -> tuple[Tensor, Tensor]:
    """Frames of the T/2 largest scores and of the T/2 smallest ones, each ascending in time.

    score_t = mean_u (z_t . z_u) / C = z_t . mean_u(z_u) / C, so the T x T products are never formed.
    """
    frames, channels = x.shape[1], x.shape[3]
    pooled = pool_frames(x, height, width, pool).flatten(2)
    score = torch.einsum("btd,bd->bt", pooled, pooled.mean(1)) / channels
    if order_prior:
        score = score + (torch.arange(frames, device=x.device) % 2 == 0).to(score.dtype)
    order = score.sort(dim=1, descending=True, stable=True).indices
    half = frames // 2
    return order[:, :half].sort(dim=1).values, order[:, half:].sort(dim=1).values
