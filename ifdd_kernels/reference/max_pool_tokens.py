"""Definition of ``max_pool_tokens``: max-pooling of tokens on a grid, the class token kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels.grids import pooled_grid

Triple = list[int]


def max_pool_tokens(x: Tensor, grid: Triple, stride: Triple) -> tuple[Tensor, Tensor]:
    """(B, 1 + N', C) and, per value of a cell, the row of x it came from: (B, N', C) int32."""
    batch, _, channels = x.shape
    out_grid = pooled_grid(grid, stride)
    if batch == 0 or channels == 0:
        cells = out_grid[0] * out_grid[1] * out_grid[2]
        rows = torch.empty(batch, cells, channels, dtype=torch.int32, device=x.device)
        return x[:, :1].expand(-1, 1 + cells, -1).clone(), rows
    # From twice the axis on the one window holds every cell.
    stride = [min(step, 2 * size) for step, size in zip(stride, grid, strict=True)]
    kernel = [step + 1 if step > 1 else 1 for step in stride]
    volume = x[:, 1:].reshape(batch, *grid, channels).permute(0, 4, 1, 2, 3)
    pooled, places = F.max_pool3d(volume, kernel, stride, [size // 2 for size in kernel], return_indices=True)
    # With an odd stride the kernel is even and a last window may lie beyond the grid's end.
    t, h, w = out_grid
    pooled, places = (part[:, :, :t, :h, :w].flatten(2).transpose(1, 2) for part in (pooled, places))
    if x.is_cuda and not torch._C._are_functorch_transforms_active():
        # Places are int64: sum, narrower type and layout in one launch. Exporters and transforms take no out.
        rows = torch.add(places, 1, out=torch.empty(places.shape, dtype=torch.int32, device=x.device))
    else:
        rows = 1 + places.to(torch.int32)
    return torch.cat((x[:, :1], pooled), 1), rows


def max_pool_tokens_backward(grad_out: Tensor, rows: Tensor, grid: Triple, stride: Triple) -> Tensor:
    """Gradient of x: every cell's gradient goes to the row its value came from."""
    batch, _, channels = grad_out.shape
    wide = grad_out.to(torch.float64 if grad_out.dtype == torch.float64 else torch.float32)
    grad_x = wide.new_zeros(batch, 1 + grid[0] * grid[1] * grid[2], channels)
    grad_x[:, :1] = wide[:, :1]
    return grad_x.scatter_add(1, rows.long(), wide[:, 1:]).to(grad_out.dtype)
