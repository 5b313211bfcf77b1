"""Splits of a clip's frames into a static and a dynamic group of T/2 frames each.

All take x (B, C, T, H*W) and return static and dynamic (B, C, T/2, H*W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _pool_frames(x: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Frames as images, average-pooled to pool x pool: (B, C, T, H*W) -> (B*T, C, pool, pool)."""
    batch, channels, frames, _ = x.shape
    images = x.permute(0, 2, 1, 3).reshape(batch * frames, channels, *grid)
    return F.adaptive_avg_pool2d(images, pool)


class InterpolatedSplit(nn.Module):
    """ISSM: fractional frame indexes from the correlation of the frames, then linear interpolation in time.

    M = z z^T / C of pooled, projected frames z; the indexes are (0, 2, ..) + reach * tanh(W_s vec softmax(M))
    and (1, 3, ..) + reach * tanh(W_d vec softmax(-M)). They are normalised as if the corners were aligned but
    sampled with ``align_corners=False``, so index i means position i * T/(T-1) - 1/2, clamped to the clip.
    """

    index_even: Tensor
    index_odd: Tensor

    def __init__(
        self, channels: int, frames: int, grid: tuple[int, int], pool: int = 7, reach: float = 2.0
    ) -> None:
        super().__init__()
        self.grid, self.pool, self.reach = grid, pool, reach
        self.scale = 1.0 / channels
        half = _half(frames)
        self.register_buffer("index_even", torch.arange(0, frames, 2))
        self.register_buffer("index_odd", torch.arange(1, frames, 2))
        self.dim_project = nn.Sequential(nn.Conv2d(channels, pool, kernel_size=1), nn.GELU())
        self.offset_project_approx = nn.Sequential(nn.Linear(frames * frames, half, bias=False), nn.Tanh())
        self.offset_project_detail = nn.Sequential(nn.Linear(frames * frames, half, bias=False), nn.Tanh())
        # Part of every stored model, never used in a forward.
        self.time_project = nn.Sequential(nn.Linear(frames, frames), nn.GELU(), nn.Linear(frames, 1))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.03)

    def correlation(self, x: Tensor) -> Tensor:
        """(B, T, T)."""
        batch, _, frames, _ = x.shape
        z = self.dim_project(_pool_frames(x, self.grid, self.pool)).reshape(batch, frames, -1)
        return torch.matmul(z, z.transpose(1, 2)) * self.scale

    def indexes(self, correlation: Tensor) -> tuple[Tensor, Tensor]:
        """Static and dynamic index (B, T/2), in frames."""
        alike = correlation.softmax(dim=-1).flatten(1)
        unlike = (-correlation).softmax(dim=-1).flatten(1)
        static = self.index_even + self.reach * self.offset_project_approx(alike)
        dynamic = self.index_odd + self.reach * self.offset_project_detail(unlike)
        return static, dynamic

    def sample(self, x: Tensor, index: Tensor) -> Tensor:
        """Frames at a fractional index (B, K), read as rows of a (T, 1) image with C*H*W channels."""
        batch, channels, frames, tokens = x.shape
        image = x.permute(0, 3, 1, 2).reshape(batch, tokens * channels, frames, 1)
        y = 2.0 * index / (frames - 1) - 1.0
        grid = torch.stack((torch.zeros_like(y), y), dim=-1).unsqueeze(2)
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.reshape(batch, tokens, channels, -1).permute(0, 2, 3, 1).contiguous()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        static, dynamic = self.indexes(self.correlation(x))
        return self.sample(x, static), self.sample(x, dynamic)


class TopKSplit(nn.Module):
    """Hard split by score: the T/2 frames most alike the others are static, the T/2 least alike dynamic.

    score_t = mean over u of z_t . z_u / C of the pooled frames z, plus 1 on even t with the order prior.
    Frames keep their order inside a group; the gradient flows to the gathered frames only.
    """

    def __init__(
        self, channels: int, frames: int, grid: tuple[int, int], pool: int = 7, order_prior: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.pool, self.order_prior = grid, pool, order_prior
        self.scale = 1.0 / channels
        self.group_frames = _half(frames)

    def scores(self, x: Tensor) -> Tensor:
        """(B, T)."""
        batch, _, frames, _ = x.shape
        z = _pool_frames(x, self.grid, self.pool).reshape(batch, frames, -1)
        scores = (torch.matmul(z, z.transpose(1, 2)) * self.scale).mean(dim=-1)
        if self.order_prior:
            scores = scores + (torch.arange(frames, device=x.device) % 2 == 0).to(scores.dtype)
        return scores

    def _gather(self, x: Tensor, scores: Tensor, largest: bool) -> Tensor:
        index = torch.topk(scores, self.group_frames, dim=-1, largest=largest).indices.sort(dim=-1).values
        batch, channels, _, tokens = x.shape
        return torch.gather(x, 2, index[:, None, :, None].expand(batch, channels, self.group_frames, tokens))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return self._gather(x, scores, largest=True), self._gather(x, scores, largest=False)


class EvenOddSplit(nn.Module):
    """The lazy wavelet: even frames are static, odd frames dynamic."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _half(x.shape[2])
        return x[:, :, 0::2].contiguous(), x[:, :, 1::2].contiguous()


def _half(frames: int) -> int:
    if frames < 2 or frames % 2:
        raise ValueError(f"frames: expected an even number of at least 2, got {frames}")
    return frames // 2


def make_split(
    name: str,
    channels: int,
    frames: int,
    grid: tuple[int, int],
    pool: int = 7,
    reach: float = 2.0,
    order_prior: bool = False,
) -> nn.Module:
    """The split called "interpolate", "topk" or "even_odd"; ValueError for any other name."""
    if name == "interpolate":
        return InterpolatedSplit(channels, frames, grid, pool, reach)
    if name == "topk":
        return TopKSplit(channels, frames, grid, pool, order_prior)
    if name == "even_odd":
        return EvenOddSplit()
    raise ValueError(f"split: expected interpolate, topk or even_odd, got {name!r}")
