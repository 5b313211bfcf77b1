"""Stochastic depth."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples: y_b = x_b * m_b / (1 - rate), m_b ~ Bernoulli(1 - rate).

    The identity in evaluation and at rate 0. Source: Huang et al., "Deep Networks with Stochastic Depth"
    (2016).

    Args:
        rate: probability in [0, 1) that a sample loses the branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath: rate must be in [0, 1); got {rate}")
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, ...), same dtype."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        mask = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(keep)
        return branch * (mask / keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"
