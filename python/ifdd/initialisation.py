"""A start for narrow networks that are trained from nothing.

The published start (truncated normal 0.02) assumes pretrained weights or wide layers: in a layer of 16 inputs
a deviation of 0.02 is a tenth of what keeps a signal's size, and raw pixels in [0, 1] are mostly their mean.
"""

from __future__ import annotations

import torch
from torch import nn

PIXEL_MEAN = 0.5
PIXEL_DEVIATION = 0.25


@torch.no_grad()
def start_at_unit_gain(embedding: nn.Module, backbone: nn.Module) -> None:
    """Gives the backbone's Linears the deviation fan_in^-1/2 and folds the pixels' mean into the embedding.

    A convolution w with bias b on clips x becomes w / 0.25 with bias -0.5 * sum(w) / 0.25, which is w on
    (x - 0.5) / 0.25: the network still takes raw clips. An embedding with batch norm centres its input itself
    and is left alone.

    Args:
        embedding: the embedding of an `ifdd.IFDD`.
        backbone: its backbone.
    """
    conv = getattr(embedding, "conv", None)
    if isinstance(conv, nn.Conv3d) and conv.bias is not None:
        conv.weight.div_(PIXEL_DEVIATION)
        conv.bias.copy_(-PIXEL_MEAN * conv.weight.sum((1, 2, 3, 4)))
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
