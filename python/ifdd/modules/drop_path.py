"""Stochastic depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


class DropPath(nn.Module):
    """Drops a residual branch for whole samples: y_b = x_b * m_b / (1 - rate), m_b ~ Bernoulli(1 - rate).

    The identity in evaluation and at rate 0. Source: Huang et al., "Deep Networks with Stochastic Depth"
    (2016).

    Args:
        rate: probability in [0, 1) that a sample loses the branch; it may be set later.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def rate(self) -> float:
        """The probability that a sample loses the branch."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath: rate must be in [0, 1); got {rate}")
        self._rate, self._drops = rate, rate > 0.0
        self._find_keep(self._keep.device if "_keep" in self.__dict__ else torch.device("cpu"))

    def _find_keep(self, device: torch.device) -> torch.Tensor:
        # A tensor, for compilers take a number for a constant of the program: blocks that differ by nothing
        # but their rates share one. No buffer: it is never cast, and no state of the network.
        with torch.inference_mode(False):
            self._keep = torch.tensor(1.0 - self._rate, dtype=torch.float64, device=device)
        return self._keep

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> DropPath:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self._keep.device)).device
        if device != self._keep.device:
            self._find_keep(device)
        return self

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, ...), same dtype."""
        return branch * self._scale(branch) if self.training and self._drops else branch

    def added(self, tokens: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        """tokens + forward(branch), in one pass: what is left of the branch is never written on its own."""
        if not (self.training and self._drops):
            return tokens + branch
        return torch.addcmul(tokens, branch, self._scale(branch))

    def keep_on(self, device: torch.device) -> torch.Tensor | None:
        """1 - rate in float64 on a device, where samples lose branches now; else None."""
        if not (self.training and self._drops):
            return None
        return self._keep if self._keep.device == device else self._find_keep(device)

    def _scale(self, branch: torch.Tensor) -> torch.Tensor:
        """m_b / (1 - rate), (B, 1, ...)."""
        keep = self._keep
        if keep.device != branch.device:
            keep = self._find_keep(branch.device)
        keep = keep.to(branch.dtype)
        mask = torch.bernoulli(keep.expand((branch.shape[0],) + (1,) * (branch.ndim - 1)))
        return mask / keep

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


def drawn(paths: Sequence[DropPath], tokens: torch.Tensor) -> list[torch.Tensor | None]:
    """For each path the samples that keep its branch, (B,) bool; None for a path that drops nothing.

    Those of a whole network cost as many launches as those of one path.
    """
    keeps = [path.keep_on(tokens.device) for path in paths]
    dropping = [keep for keep in keeps if keep is not None]
    if not dropping:
        return [None] * len(paths)
    keep = torch.stack(dropping)[:, None]
    rows = iter(torch.bernoulli(keep.expand(-1, tokens.shape[0])).bool().unbind())
    return [None if one is None else next(rows) for one in keeps]
