"""Layers that several parts of the network share."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth per sample: in training each sample of a branch is zeroed with probability ``rate``.

    Those that stay are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate: expected 0 <= rate < 1, got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep.div_(1.0 - self.rate)


def mlp(channels: int, hidden: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, Dropout, Linear, Dropout; the Linears are entries 0 and 3, as the stored names want."""
    return nn.Sequential(
        nn.Linear(channels, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, channels),
        nn.Dropout(dropout),
    )
