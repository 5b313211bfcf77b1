"""Definition of ``lifting_loss``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.reference._common import accumulator


def lifting_loss(residual: Tensor, weight: float, beta: float, mean: bool) -> Tensor:
    """Weight * sum (or mean) over clips of the clip's mean smooth-L1 distance to zero."""
    residual = residual.to(accumulator(residual.dtype))
    elementwise = F.smooth_l1_loss(residual, torch.zeros_like(residual), reduction="none", beta=beta)
    clips = elementwise.reshape(residual.shape[0], math.prod(residual.shape[1:])).mean(1)
    return weight * (clips.mean() if mean else clips.sum())


def lifting_loss_backward(
    grad_loss: Tensor, residual: Tensor, weight: float, beta: float, mean: bool
) -> Tensor:
    """Grad * weight * clamp(r / beta, -1, 1), shared over the cells of a clip (and over the clips)."""
    r = residual.to(accumulator(residual.dtype))
    clips, cells = r.shape[0], r[0:1].numel()
    share = weight / (max(cells, 1) * (max(clips, 1) if mean else 1))
    return (grad_loss * (r / beta).clamp(-1, 1) * share).to(residual.dtype)
