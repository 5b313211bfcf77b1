"""From a clip to the first grid of tokens."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ifdd.config import EMBEDDED_FRAMES, EMBEDDING_FRAMES, PATCH_STRIDE
from ifdd.modules.children import lowered_layers, weights
from ifdd.modules.convolution import Conv3d, convolve
from ifdd.modules.separable import ConvNormReLU, SeparableConv


class ConvEmbedding(nn.Module):
    """One overlapping 3-D convolution, kernel (3, 7, 7), spatial stride 4, that leaves 8 frames.

    The temporal stride is 1 for 8 frames and 2 otherwise; for 32 frames the mean of neighbouring output
    frames follows. Convolution and mean are one convolution with a kernel of length 5 and stride 4 there, so
    the forward pass computes that one where `conv` may be read (docs/modules.md): weights keep the shape
    (C, 3, 3, 7, 7).

    Args:
        channels: output channels C.
        clip_frames: 8, 16 or 32.

    Raises:
        ValueError: another number of frames.
    """

    def __init__(self, channels: int, clip_frames: int = 16) -> None:
        super().__init__()
        if clip_frames not in EMBEDDING_FRAMES["conv"]:
            raise ValueError(
                f"ConvEmbedding: clip_frames must be one of {EMBEDDING_FRAMES['conv']}; got {clip_frames}"
            )
        self.temporal_stride = clip_frames // EMBEDDED_FRAMES
        stride = (min(self.temporal_stride, 2), PATCH_STRIDE, PATCH_STRIDE)
        self.conv = Conv3d(3, channels, (3, 7, 7), stride, (1, 3, 3))
        self._made_with = self._settings()

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 3, T_in, H, W) -> (B, C, 8, H/4, W/4)."""
        if self.temporal_stride <= 2:
            with lowered_layers(clips, self.conv):
                volume: torch.Tensor = self.conv(clips)
            return volume
        found = weights(self.conv, Conv3d)
        if found is None or self._settings() != self._made_with:
            return F.avg_pool3d(self.conv(clips), (2, 1, 1))
        weight, bias = found
        # Output frames 2t and 2t+1 see input frames 4t-1..4t+1 and 4t+1..4t+3; their mean sees 4t-1..4t+3.
        early, late = F.pad(weight, (0, 0, 0, 0, 0, 2)), F.pad(weight, (0, 0, 0, 0, 2, 0))
        stride = (self.temporal_stride, PATCH_STRIDE, PATCH_STRIDE)
        function = partial(F.conv3d, stride=stride, padding=self.conv.padding)
        return convolve(function, clips, (early + late) / 2, bias)

    def _settings(self) -> tuple[object, ...]:
        """The settings of the convolution that the folded one depends on."""
        conv = self.conv
        return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode


class S3DEmbedding(nn.Module):
    """The stem of S3D, then a strided temporal convolution: time and space are both divided by 4.

    Args:
        channels: output channels C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = SeparableConv(3, 64, kernel=7, stride=2)
        self.shrink = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.mix = ConvNormReLU(64, 64, (1, 1, 1))
        self.widen = SeparableConv(64, 192, kernel=3)
        self.fuse = ConvNormReLU(192, channels, (3, 1, 1), (2, 1, 1), (1, 0, 0))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 3, T_in, H, W) -> (B, C, T_in/4, H/4, W/4)."""
        volume: torch.Tensor = self.fuse(self.widen(self.mix(self.shrink(self.stem(clips)))))
        return volume
