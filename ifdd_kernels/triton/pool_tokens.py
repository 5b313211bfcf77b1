"""Triton kernels of ``pool_tokens``.

Forward: one launch for q, k and v. Backward: one launch recomputes the convolution and turns the norm's
gradient into that of its result, one gathers the input's gradient from there, one correlates it with the
input for the weights. The partial sums of the last and of the norm are added in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels.grids import pooled_grid
from ifdd_kernels.triton._pool_tokens_kernels import (
    input_gradient_kernel,
    pool_kernel,
    weight_gradient_kernel,
)
from ifdd_kernels.triton._runtime import INTERPRET, Kernel, cdiv, contiguous_channels, next_power_of_2
from ifdd_kernels.triton._tuning import Config

#: Programs that keep a large GPU busy twice over: fewer, and the work is cut finer.
BUSY = 264
#: Largest plane of a tile in the interpreter, which pays for programs and not for their size.
INTERPRETED_SIDE = 32

Tile = dict[str, int]


def _tile(out_grid: Sequence[int], programs: int, block_y: int, block_x: int) -> Tile:
    """A tile of all frames, or of fewer where that leaves a GPU idle; ``programs``: clips * heads."""
    if INTERPRET:
        block_y, block_x = (min(INTERPRETED_SIDE, next_power_of_2(size)) for size in out_grid[1:])
        return {"block_t": out_grid[0], "block_y": block_y, "block_x": block_x}
    block_t = out_grid[0]
    plane = cdiv(out_grid[1], block_y) * cdiv(out_grid[2], block_x)
    while block_t > 2 and programs * plane * cdiv(out_grid[0], block_t) < BUSY:
        block_t = cdiv(block_t, 2)
    return {"block_t": block_t, "block_y": block_y, "block_x": block_x}


def _tiles(out_grid: Sequence[int], tile: Mapping[str, int]) -> int:
    blocks = (tile["block_t"], tile["block_y"], tile["block_x"])
    return math.prod(cdiv(size, block) for size, block in zip(out_grid, blocks, strict=True))


def _pool_configs(arguments: Mapping[str, Any]) -> list[Config]:
    """Tiles of 32 cells, square or flat; they share loads in the first-level cache, flat ones more along x.

    8 warps: then the 128 lanes of a tap are fewer than the threads, and the compiler loads a tap in the
    layout of the sums instead of moving it there through shared memory. With twice the cells or half the
    warps the three frames of sums do not fit the registers. The limit of 255 keeps the assembler from
    aiming at half of that, and spilling, for a second block on the multiprocessor.
    """
    query = arguments["out_q"]
    out_grid = [
        cdiv(arguments[f"q_{size}"], arguments[f"q_stride_{axis}"])
        for size, axis in (("frames", "t"), ("height", "y"), ("width", "x"))
    ]
    sides = ((4, 8), (2, 16)) if out_grid[2] > 8 and not INTERPRET else ((4, 8),)
    programs = query.shape[0] * query.shape[2]
    return [Config(_tile(out_grid, programs, *side), num_warps=8, max_registers=255) for side in sides]


POOL = Kernel(
    pool_kernel,
    _pool_configs,
    key=("heads", "q_frames", "q_height", "q_width", "kv_frames", "kv_height", "kv_width"),
)
#: The same kernel as the first step of the backward, with a tile of its own: it decides how the norm's
#: partial sums are cut.
POOL_GRADIENT = Kernel(pool_kernel, lambda arguments: [Config({}, num_warps=8, max_registers=255)])
INPUT_GRADIENT = Kernel(input_gradient_kernel, lambda arguments: [Config({}, num_warps=8, max_registers=255)])
WEIGHT_GRADIENT = Kernel(weight_gradient_kernel, lambda arguments: [Config({}, num_warps=4)])


@dataclass(frozen=True)
class _Geometry:
    """Where q, k and v lie and what becomes of them."""

    batch: int
    heads: int
    channels: int
    grids: tuple[Sequence[int], Sequence[int]]
    strides: tuple[Sequence[int], Sequence[int]]

    @property
    def out_grids(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Grids of q and of k and v after pooling."""
        first, second = (pooled_grid(g, s) for g, s in zip(self.grids, self.strides, strict=True))
        return first, second

    @property
    def rows(self) -> tuple[int, int]:
        """Rows of the results, class token included."""
        first, second = (1 + math.prod(grid) for grid in self.out_grids)
        return first, second

    def pool_programs(self, tile: Mapping[str, int]) -> tuple[int]:
        """Programs of :data:`POOL` for a tile."""
        first, second = (_tiles(out_grid, tile) for out_grid in self.out_grids)
        return (self.batch * self.heads * (first + 2 * second),)

    def input_gradient_programs(self, tile: Mapping[str, int]) -> tuple[int]:
        """Programs of :data:`INPUT_GRADIENT`: a tile holds the inputs of one residue modulo the stride."""
        first, second = (
            _tiles((grid[0], *out_grid[1:]), tile) * stride[1] * stride[2]
            for grid, out_grid, stride in zip(self.grids, self.out_grids, self.strides, strict=True)
        )
        return (self.batch * self.heads * (first + 2 * second),)

    def arguments(self) -> dict[str, Any]:
        """Arguments of every kernel."""
        names = ("t", "y", "x")
        sizes = ("frames", "height", "width")
        found: dict[str, Any] = {
            "heads": self.heads,
            "channels": self.channels,
            "block_c": next_power_of_2(self.channels),
            "q_rows": self.rows[0],
            "kv_rows": self.rows[1],
        }
        for part, grid, stride in zip(("q", "kv"), self.grids, self.strides, strict=True):
            found |= {f"{part}_{name}": size for name, size in zip(sizes, grid, strict=True)}
            found |= {f"{part}_stride_{name}": step for name, step in zip(names, stride, strict=True)}
        return found


def _packing(qkv: Tensor, key_value: Tensor | None, width: int) -> dict[str, int]:
    """Steps and offsets of q, k and v: three thirds of one tensor, or q and (k | v)."""
    other = qkv if key_value is None else key_value
    first = width if key_value is None else 0
    return {
        "q_batch": qkv.stride(0),
        "q_token": qkv.stride(1),
        "kv_batch": other.stride(0),
        "kv_token": other.stride(1),
        "key_offset": first,
        "value_offset": first + width,
    }


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """(3, 27, d) float32: the kernels read one tap of all channels at a time."""
    return torch.stack([weight.reshape(weight.shape[0], 27).t().float() for weight in weights])


def forward(
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_bias_q: Tensor,
    norm_weight_k: Tensor,
    norm_bias_k: Tensor,
    norm_weight_v: Tensor,
    norm_bias_v: Tensor,
    grid: list[int],
    key_value_grid: list[int],
    heads: int,
    stride_q: list[int],
    stride_kv: list[int],
    eps: float,
) -> tuple[Tensor, ...]:
    """See :func:`ifdd_kernels.pool_tokens`. Channels that are not dense in memory are copied first."""
    qkv = contiguous_channels(qkv)
    key_value = None if key_value is None else contiguous_channels(key_value)
    shape = _Geometry(qkv.shape[0], heads, weight_q.shape[0], (grid, key_value_grid), (stride_q, stride_kv))
    rows = (shape.rows[0], shape.rows[1], shape.rows[1])
    out = [qkv.new_empty(shape.batch, n, heads, shape.channels) for n in rows]
    stats = [qkv.new_empty(shape.batch, n, heads, 2, dtype=torch.float32) for n in rows]
    POOL(
        shape.pool_programs,
        q_source=qkv,
        kv_source=qkv if key_value is None else key_value,
        **_packing(qkv, key_value, heads * shape.channels),
        weights=_stacked((weight_q, weight_k, weight_v)),
        gamma_q=norm_weight_q,
        beta_q=norm_bias_q,
        gamma_k=norm_weight_k,
        beta_k=norm_bias_k,
        gamma_v=norm_weight_v,
        beta_v=norm_bias_v,
        **dict(zip(("out_q", "out_k", "out_v"), out, strict=True)),
        **dict(zip(("stats_q", "stats_k", "stats_v"), stats, strict=True)),
        **dict.fromkeys(("grad_q", "grad_k", "grad_v"), out[0]),  # used by the gradient only
        partial=stats[0],
        eps=eps,
        gradient=False,
        **shape.arguments(),
    )
    return (*out, *stats)


def backward(
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    qkv: Tensor,
    key_value: Tensor | None,
    weight_q: Tensor,
    weight_k: Tensor,
    weight_v: Tensor,
    norm_weight_q: Tensor,
    norm_weight_k: Tensor,
    norm_weight_v: Tensor,
    stats_q: Tensor,
    stats_k: Tensor,
    stats_v: Tensor,
    grid: list[int],
    key_value_grid: list[int],
    heads: int,
    stride_q: list[int],
    stride_kv: list[int],
) -> tuple[Tensor, ...]:
    """Gradients of qkv, key_value (empty without), the convolutions' weights and the norms' parameters."""
    qkv = contiguous_channels(qkv)
    key_value = None if key_value is None else contiguous_channels(key_value)
    weights, norms = (weight_q, weight_k, weight_v), (norm_weight_q, norm_weight_k, norm_weight_v)
    shape = _Geometry(qkv.shape[0], heads, weight_q.shape[0], (grid, key_value_grid), (stride_q, stride_kv))
    common = shape.arguments()
    source = {"q_source": qkv, "kv_source": qkv if key_value is None else key_value}
    packing = _packing(qkv, key_value, heads * shape.channels)
    stacked = _stacked(weights)

    # The gradient of the convolutions' results, in the precision of the inputs.
    names = ("grad_q", "grad_k", "grad_v")
    arriving = [grad.contiguous() for grad in (grad_query, grad_key, grad_value)]
    pooled = dict(zip(names, (torch.empty_like(grad) for grad in arriving), strict=True))
    tile = _tile(shape.out_grids[0], shape.batch * heads, 4, 8)
    counts = [_tiles(out_grid, tile) for out_grid in shape.out_grids]
    norm_sums = _partial_sums(qkv, shape, counts, 2)
    POOL_GRADIENT(
        shape.pool_programs,
        **source,
        **packing,
        weights=stacked,
        **dict(zip(("gamma_q", "gamma_k", "gamma_v"), norms, strict=True)),
        **dict(zip(("beta_q", "beta_k", "beta_v"), norms, strict=True)),  # used by the forward only
        **{f"out{name[4:]}": value for name, value in pooled.items()},
        stats_q=stats_q.contiguous(),
        stats_k=stats_k.contiguous(),
        stats_v=stats_v.contiguous(),
        **dict(zip(names, arriving, strict=True)),
        partial=norm_sums,
        eps=0.0,
        gradient=True,
        **common,
        **tile,
    )

    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    if key_value is None:
        grad_key_value = qkv.new_empty(0)
        grad_other, grad_packing = grad_qkv, _packing(grad_qkv, None, heads * shape.channels)
    else:
        grad_key_value = torch.empty_like(key_value, memory_format=torch.contiguous_format)
        grad_other = grad_key_value
        grad_packing = _packing(grad_qkv, grad_key_value, heads * shape.channels)
    INPUT_GRADIENT(
        shape.input_gradient_programs,
        **pooled,
        weights=stacked,
        out_q=grad_qkv,
        out_kv=grad_other,
        **grad_packing,
        **common,
        # Where taps are skipped by their residue the compiler aims at fewer registers, and 32 cells spill.
        **_tile(shape.out_grids[0], shape.batch * heads, 4, 8 if stride_q[1:] == [1, 1] else 4),
    )

    plane = _correlation_tile(shape.out_grids[0])
    tiles = [_tiles((1, *out_grid[1:]), {"block_t": 1, **plane}) for out_grid in shape.out_grids]
    chunks = [_chunks(count, shape.batch * heads) for count in tiles]
    tap_sums = _partial_sums(qkv, shape, chunks, 27)
    WEIGHT_GRADIENT(
        lambda tiles: (shape.batch * heads * (chunks[0] + 2 * chunks[1]),),
        **source,
        **packing,
        **pooled,
        partial=tap_sums,
        q_chunks=chunks[0],
        kv_chunks=chunks[1],
        q_per_chunk=cdiv(tiles[0], chunks[0]),
        kv_per_chunk=cdiv(tiles[1], chunks[1]),
        **common,
        **plane,
    )
    grad_weights = [
        total.t().reshape(weight.shape).to(weight.dtype).contiguous()
        for total, weight in zip(_total(tap_sums, chunks), weights, strict=True)
    ]
    grad_norms = [
        part.to(norm.dtype, copy=True)  # results of an op must not share memory
        for total, norm in zip(_total(norm_sums, counts), norms, strict=True)
        for part in total.unbind(0)
    ]
    return (grad_qkv, grad_key_value, *grad_weights, *grad_norms)


def _correlation_tile(out_grid: Sequence[int]) -> Tile:
    """Four cells: with 128 channels, 27 sums of each leave room in the registers of 4 warps."""
    if INTERPRET:
        sides = (min(INTERPRETED_SIDE, next_power_of_2(size)) for size in out_grid[1:])
        return dict(zip(("block_y", "block_x"), sides, strict=True))
    return {"block_y": 1, "block_x": 4}


def _chunks(tiles: int, programs: int) -> int:
    """Programs that share one clip and head's tiles: enough to fill a GPU, few enough to sum up."""
    return 1 if INTERPRET or programs == 0 else min(tiles, cdiv(2 * BUSY, programs))


def _partial_sums(like: Tensor, shape: _Geometry, counts: Sequence[int], values: int) -> Tensor:
    """(clips * heads, programs of k, of v, of q; values, d): every program writes its own slot."""
    programs = counts[0] + 2 * counts[1]
    size = (shape.batch * shape.heads, programs, values, shape.channels)
    return like.new_empty(size, dtype=torch.float32)


def _total(partial: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of q's, k's and v's slots, each (values, d)."""
    key, value, query = partial.split([counts[1], counts[1], counts[0]], 1)
    return query.sum((0, 1)), key.sum((0, 1)), value.sum((0, 1))
