"""From a clip to a grid of embedded patches: one strided convolution, or the stem of S3D."""

from __future__ import annotations

from torch import Tensor, nn

Triple = tuple[int, int, int]


class ConvEmbedding(nn.Module):
    """Conv3d 3 -> C, kernel (3, 7, 7): clips (B, 3, T_in, S, S) -> (B, C, T, S/4, S/4).

    T_in up to 8 keeps its frames, up to 16 the convolution halves them, 32 frames are averaged in pairs after
    that.
    """

    def __init__(self, channels: int, clip_frames: int) -> None:
        super().__init__()
        if not (0 < clip_frames <= 16 or clip_frames == 32):
            raise ValueError(
                f"clip_frames: expected 1 to 16, or 32, with the conv embedding, got {clip_frames}"
            )
        stride = 2 if clip_frames > 8 else 1
        self.conv_proj = nn.Conv3d(
            3, channels, kernel_size=(3, 7, 7), stride=(stride, 4, 4), padding=(1, 3, 3)
        )
        self.time_pool = nn.AvgPool3d((2, 1, 1)) if clip_frames == 32 else nn.Identity()

    def forward(self, clips: Tensor) -> Tensor:
        return self.time_pool(self.conv_proj(clips))


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel: Triple,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
) -> nn.Sequential:
    """Conv3d without bias, BatchNorm (eps and momentum 0.001), ReLU."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm3d(out_channels, eps=0.001, momentum=0.001),
        nn.ReLU(inplace=True),
    )


class SeparableConv3d(nn.Sequential):
    """A k x k convolution in space, then one of length k in time, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        pad = kernel // 2
        super().__init__(
            conv_norm_relu(
                in_channels, out_channels, (1, kernel, kernel), (1, stride, stride), (0, pad, pad)
            ),
            conv_norm_relu(out_channels, out_channels, (kernel, 1, 1), (stride, 1, 1), (pad, 0, 0)),
        )


class S3DEmbedding(nn.Module):
    """Stem of S3D: clips (B, 3, T_in, S, S) -> (B, C, T_in/4, S/4, S/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            SeparableConv3d(3, 64, kernel=7, stride=2),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            conv_norm_relu(64, 64, (1, 1, 1)),
            SeparableConv3d(64, 192, kernel=3),
        )
        self.fuse = nn.Sequential(conv_norm_relu(192, channels, (3, 1, 1), (2, 1, 1), (1, 0, 0)))

    def forward(self, clips: Tensor) -> Tensor:
        return self.fuse(self.features(clips))
