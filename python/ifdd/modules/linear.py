"""The linear layer of the network's modules."""

from __future__ import annotations

import torch
from torch import nn

from ifdd_kernels import linear


class Linear(nn.Linear):
    """As `torch.nn.Linear`, through `ifdd_kernels.linear`, which is fast on a CPU in 16 bits too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., M)."""
        return linear(x, self.weight, self.bias)
