"""Memory traffic, FLOPs and storage of the network's layers, from the shapes and the registry's costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.suite.shapes import BlockShape, NetworkShape
from ifdd.config import EMBEDDED_FRAMES
from ifdd_kernels import live_tokens
from ifdd_kernels.grids import table_length
from ifdd_kernels.registry import REGISTRY, Cost, backward_cost

PARAMETER_BYTES = 4
NORM_FLOPS = 8
GELU_FLOPS = 10


@dataclass(frozen=True)
class Layer:
    """One layer: the part of the network it belongs to, its passes and its number of parameters."""

    part: str
    forward: Cost
    backward: Cost
    parameters: int = 0


def total(layers: Iterable[Layer], training: bool) -> Cost:
    """Of the forward pass, or of forward and backward."""
    cost = Cost(0, 0)
    for layer in layers:
        cost += layer.forward + layer.backward if training else layer.forward
    return cost


def by_part(layers: Iterable[Layer], training: bool) -> dict[str, Cost]:
    """The same for each part."""
    groups: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[layer.part].append(layer)
    return {part: total(group, training) for part, group in groups.items()}


def _linear(part: str, rows: int, inside: int, outside: int, itemsize: int, bias: bool = True) -> Layer:
    """x W^T + b on ``rows`` rows."""
    weights = inside * outside + (outside if bias else 0)
    moved = rows * (inside + outside) * itemsize + weights * PARAMETER_BYTES
    forward = Cost(moved, 2 * rows * inside * outside)
    # Backward reads input, weight and gradient, and writes the gradients of input and weight.
    return Layer(part, forward, Cost(2 * moved, 2 * forward.flops), weights)


def _elementwise(part: str, values: int, flops: int, itemsize: int, parameters: int = 0) -> Layer:
    """A pass that reads and writes ``values`` once; backward reads two tensors and writes one."""
    forward = Cost(2 * values * itemsize, values * flops)
    return Layer(part, forward, Cost(3 * values * itemsize, 2 * forward.flops), parameters)


def _norm(part: str, rows: int, channels: int, itemsize: int) -> Layer:
    return _elementwise(part, rows * channels, NORM_FLOPS, itemsize, 2 * channels)


def _op(part: str, name: str, *args: Any) -> Layer:
    """An op on meta tensors; float32 tensors among its arguments behind the first ones are its parameters."""
    entry = REGISTRY[name]
    return Layer(part, entry.cost(*args), backward_cost(entry, args), 0)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def block(shape: BlockShape, batch: int, dtype: torch.dtype, original: bool = False) -> list[Layer]:
    """One block of the backbone.

    Keys and values are needed only of tokens inside some pooling window. ``original``: of all tokens.
    """
    b, size = shape, dtype.itemsize
    inside, outside, d = b.in_channels, b.out_channels, b.head_dim
    rows, queries = batch * b.tokens, batch * (1 + math.prod(b.q_grid))
    axes = [(b.q_grid[a], b.k_grid[a]) for a in (1, 2, 0)]
    tables = [_meta(table_length(q, k), d) for q, k in axes]
    weights = [_meta(d, 1, 3, 3, 3) for _ in range(3)]
    norms = [_meta(d) for _ in range(6)]
    qkv = _meta(batch, b.tokens, 3 * outside, dtype=dtype)
    strides = (list(b.stride_q), list(b.stride_kv))
    grids = (list(b.grid), list(b.grid))
    pools = _op("pools", "pool_tokens", qkv, None, *weights, *norms, *grids, b.heads, *strides, 1e-6)
    live = batch * len(live_tokens(b.grid, b.stride_kv).rows)
    query = _meta(batch, 1 + math.prod(b.q_grid), b.heads, d, dtype=dtype)
    key = _meta(batch, 1 + math.prod(b.k_grid), b.heads, d, dtype=dtype)
    pooled_grids = (list(b.q_grid), list(b.k_grid))
    attention = _op("attention", "pooled_attention", query, key, key, *tables, *pooled_grids, d**-0.5)
    layers = [
        _norm("norms", rows, inside, size),
        _linear("qkv", rows, inside, outside, size),
        _linear("qkv", rows if original else live, inside, 2 * outside, size),
        replace(pools, parameters=sum(t.numel() for t in (*weights, *norms))),
        replace(attention, parameters=sum(t.numel() for t in tables)),
        _linear("projections", queries, outside, outside, size),
        _norm("norms", queries, outside, size),
        _linear("mlp", queries, outside, 4 * outside, size),
        _elementwise("mlp", queries * 4 * outside, GELU_FLOPS, size),
        _linear("mlp", queries, 4 * outside, outside, size),
    ]
    if inside != outside:
        layers.append(_linear("projections", rows, inside, outside, size))
    return layers


def _normed_split_parameters(channels: int) -> list[Tensor]:
    return [_meta(channels) for _ in range(4)]


def issm(shape: NetworkShape, batch: int, frames: int, dtype: torch.dtype) -> list[Layer]:
    """The splitting module, split norms included."""
    (height, width), channels, pool = shape.grid, shape.channels, shape.config.split_pool
    half = frames // 2
    x = _meta(batch, frames, height * width, channels, dtype=dtype)
    own = [_meta(pool, channels), _meta(pool), *(_meta(half, frames * frames) for _ in range(2))]
    index = [_meta(batch, half) for _ in range(2)]
    norms = _normed_split_parameters(channels)
    find = _op("split", "split_index", x, *own, height, width, pool, 2.0)
    sample = _op("split", "split_frames", x, *index, *norms, 1e-5, False)
    return [
        replace(find, parameters=sum(t.numel() for t in own)),
        replace(sample, parameters=sum(t.numel() for t in norms)),
    ]


def ladm(shape: NetworkShape, batch: int, dtype: torch.dtype, original: bool = False) -> list[Layer]:
    """Splitting, lifting and refinement.

    The weighted sum over tokens commutes with the last linear layer: one row a clip instead of T/2*N goes
    through it. ``original``: in the published order.
    """
    channels, size = shape.channels, dtype.itemsize
    tokens = shape.grid[0] * shape.grid[1]
    rows = shape.frames // 2 * tokens
    d = channels // shape.heads
    heads = _meta(batch, rows, shape.heads, d, dtype=dtype)
    attention = _op("lifting", "lifting_attention", heads, heads, heads, d**-0.5)
    frames = _meta(batch, shape.frames, tokens, channels, dtype=dtype)
    group = _meta(batch, shape.frames // 2, tokens, channels, dtype=dtype)
    every = batch * rows
    step = [
        _linear("lifting", every, channels, channels, size),
        _linear("lifting", every, channels, 2 * channels, size),
        attention,
        _linear("lifting", every, channels, channels, size),
    ]
    compress = Layer(
        "lifting",
        Cost(every * 4 * channels * size, 2 * every * (channels if original else 4 * channels)),
        Cost(2 * every * 4 * channels * size, 4 * every * (channels if original else 4 * channels)),
        rows,
    )
    return [
        *issm(shape, batch, shape.frames, dtype),
        *step,
        *step,
        _op("lifting", "lifting_residual", frames, group),
        _norm("lifting", every, channels, size),
        _linear("lifting", every, channels, 3 * channels, size),
        attention,
        _linear("lifting", every, channels, channels, size),
        _norm("lifting", every, channels, size),
        _linear("lifting", every, channels, 4 * channels, size),
        _elementwise("lifting", every * 4 * channels, GELU_FLOPS, size),
        _linear("lifting", every if original else batch, 4 * channels, channels, size),
        compress,
    ]


def embedding(shape: NetworkShape, batch: int, dtype: torch.dtype) -> list[Layer]:
    """The 3x7x7 convolution of the clips (and the class token); 32 frames are averaged in pairs behind it."""
    config, size = shape.config, dtype.itemsize
    if config.embedding != "conv":
        raise ValueError(f"cost model: only the conv embedding is modelled, got {config.embedding!r}")
    channels, taps = config.stage_channels[0], 3 * 3 * 7 * 7
    frames = config.clip_frames // 2 if config.clip_frames > EMBEDDED_FRAMES else config.clip_frames
    cells = batch * frames * (config.image_size // 4) ** 2
    clip = batch * 3 * config.clip_frames * config.image_size**2
    weights = channels * (taps + 1)
    moved = clip * 4 + cells * channels * size + weights * PARAMETER_BYTES
    flops = 2 * cells * taps * channels
    # The clip's own gradient is not wanted: one product, not two.
    return [Layer("embedding", Cost(moved, flops), Cost(moved, flops), weights + channels)]


def pyramid(shape: NetworkShape, batch: int, dtype: torch.dtype) -> list[Layer]:
    """Earlier stages through a 3x3 convolution at the last stage's grid, then one merging product."""
    config, size = shape.config, dtype.itemsize
    rows = batch * shape.frames * shape.grid[0] * shape.grid[1]
    widths = [config.stage_channels[stage] for stage in config.stages]
    if len(widths) == 1:
        return []
    convolutions = [_linear("pyramid", rows, 9 * width, width, size, bias=False) for width in widths[:-1]]
    return [*convolutions, _linear("pyramid", rows, sum(widths), widths[-1], size, bias=False)]


def embedding_and_blocks(
    shape: NetworkShape, batch: int, dtype: torch.dtype, original: bool = False
) -> list[Layer]:
    """Clips to the normalised tokens of the last stage."""
    layers = embedding(shape, batch, dtype)
    for which in shape.blocks:
        layers += which.count * block(which, batch, dtype, original)
    rows = batch * (1 + shape.frames * shape.grid[0] * shape.grid[1])
    return [*layers, _norm("norms", rows, shape.channels, dtype.itemsize)]


def network(shape: NetworkShape, batch: int, dtype: torch.dtype, original: bool = False) -> list[Layer]:
    """The whole network. ``original``: in the published order, with the parameters it never uses."""
    channels, tokens = shape.channels, shape.grid[0] * shape.grid[1]
    layers = [
        *embedding_and_blocks(shape, batch, dtype, original),
        *pyramid(shape, batch, dtype),
        *ladm(shape, batch, dtype, original),
        _linear("head", batch, channels, shape.config.num_classes, dtype.itemsize),
    ]
    if original:
        positions = (tokens + shape.frames + 1) * channels
        time_projection = (shape.frames + 1) * shape.frames + shape.frames + 1
        layers.append(Layer("unused", Cost(0, 0), Cost(0, 0), positions + time_projection))
    return layers


def parameters(layers: Iterable[Layer]) -> int:
    """Number of parameters."""
    return sum(layer.parameters for layer in layers)
