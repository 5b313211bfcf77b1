"""Convolution, batch norm and ReLU, and their space-then-time pair, the unit of the S3D stem."""

from __future__ import annotations

import torch
from torch import nn

from ifdd.modules.convolution import Conv3d

BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 1e-3


class ConvNormReLU(nn.Module):
    """ReLU(BatchNorm(Conv3d(x))), the convolution without bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        return torch.relu(self.norm(self.conv(x)))


class SeparableConv(nn.Module):
    """A k x k convolution in space, then a convolution of length k in time, each a `ConvNormReLU`.

    Source: Xie et al., "Rethinking Spatiotemporal Feature Learning" (S3D, 2018).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        pad = kernel // 2
        self.spatial = ConvNormReLU(
            in_channels, out_channels, (1, kernel, kernel), (1, stride, stride), (0, pad, pad)
        )
        self.temporal = ConvNormReLU(out_channels, out_channels, (kernel, 1, 1), (stride, 1, 1), (pad, 0, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        out: torch.Tensor = self.temporal(self.spatial(x))
        return out
