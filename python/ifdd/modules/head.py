"""The classifier."""

from __future__ import annotations

import torch
from torch import nn

from ifdd.modules.children import apply_linear

INIT_STD = 0.01


class ClassHead(nn.Module):
    """logits = Linear(Dropout(feature)), weights trunc-normal(0.01), bias 0 at the start.

    Args:
        channels: C.
        num_classes: length of the logits.
        dropout: rate.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=INIT_STD)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """(B, C) -> (B, classes)."""
        return apply_linear(self.classifier, self.dropout(feature))

    def lowerable(self) -> list[nn.Module]:
        """The layers whose weights may be cast before the module runs."""
        return [self.classifier]
