"""One entry per op: sample inputs, accuracy, and what it must move and compute.

Tests, benchmarks and documentation iterate over :data:`REGISTRY` instead of naming ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels import ops, reference
from ifdd_kernels._operator import NAMESPACE, OPERATORS, Gradient, Operator
from ifdd_kernels.ops.pooled_attention import table_length
from ifdd_kernels.reference._common import accumulator


@dataclass(frozen=True)
class Sample:
    """Arguments of an op, in the order of its schema."""

    label: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Cost:
    """The least an op can do: bytes of its inputs and outputs, each moved once, and its FLOPs (2 per
    multiply-add; an exponential or a square root counts 1).
    """

    bytes: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


class Maker:
    """Random arguments of one dtype on one device, never zero and never alike twice."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.dtype = dtype
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Contiguous normal values."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale
        return values.to(device=self.device, dtype=self.dtype)

    def strided(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values in a view with permuted axes and a gap in its memory."""
        order = (len(shape) - 1, *range(len(shape) - 1))
        stored = [shape[axis] for axis in order]
        values = self.normal(*stored[:-1], 2 * stored[-1] + 1, scale=scale)[..., 1::2]
        return values.permute(*(order.index(axis) for axis in range(len(shape))))

    def parameter(self, *shape: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        """Values of a parameter: float32 beside 16-bit activations."""
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale + mean
        return values.to(device=self.device, dtype=accumulator(self.dtype))

    def positions(self, batch: int, count: int, frames: int) -> Tensor:
        """Sampling positions, some of them beyond either end."""
        values = torch.rand(batch, count, generator=self._generator, dtype=torch.float64)
        return (values * (frames + 3) - 2).to(device=self.device, dtype=accumulator(self.dtype))

    def frame_numbers(self, batch: int, count: int, frames: int) -> Tensor:
        """Integer frame numbers in range."""
        return torch.randint(0, frames, (batch, count), generator=self._generator).to(self.device)


@dataclass(frozen=True)
class Entry:
    """What the project knows of an op beside its code."""

    name: str
    #: The public function.
    function: Callable[..., Any]
    #: Sample arguments: odd and minimal sizes, strided inputs, an empty batch, short and long clips.
    samples: Callable[[Maker], Iterator[Sample]]
    #: Least bytes and FLOPs of the forward pass for the given arguments.
    cost: Callable[..., Cost]
    #: Error bound in roundings of the result's dtype, relative to the largest value; ``why`` derives it.
    roundings: float
    why: str

    @property
    def operator(self) -> Operator | None:
        """The registered operator; None for an op that decomposes into others."""
        return OPERATORS.get(self.name)

    @property
    def overload(self) -> torch._ops.OpOverload:
        """``torch.ops.ifdd.<name>``."""
        overload: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        return overload

    def reference(self, *args: Any) -> Any:
        """The op's definition in plain PyTorch, differentiable by PyTorch."""
        return getattr(reference, self.name)(*args)


def backward_arguments(operator: Operator, args: tuple[Any, ...], seed: int = 1) -> tuple[Any, ...]:
    """Arguments of an op's backward for a sample: its own forward results and random cotangents."""
    assert operator.backward is not None
    outputs = operator.overload()(*args)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    generator = torch.Generator().manual_seed(seed)

    def cotangent(output: Tensor) -> Tensor:
        values = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        return values.to(device=output.device, dtype=output.dtype)

    return tuple(
        cotangent(outputs[argument.output]) if isinstance(argument, Gradient) else argument
        for argument in operator.backward.arguments(args, outputs)
    )


def backward_cost(entry: Entry, args: tuple[Any, ...]) -> Cost:
    """Least bytes and FLOPs of an op's backward for the given arguments, which may be on the meta device.

    Bytes: what the backward op takes and returns, each moved once. FLOPs: two products for each of the
    forward pass; what a kernel computes again instead of keeping it is not needed, so it does not count.
    An op without a backward costs nothing; one that decomposes into others moves its arguments, the
    gradient of its result and the gradients of its arguments.
    """
    forward = entry.cost(*args)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if entry.operator is None:
        return Cost(2 * _size(*tensors), 2 * forward.flops)
    rule = entry.operator.backward
    if rule is None:
        return Cost(0, 0)
    meta = tuple(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args)
    outputs = entry.operator.fake(*meta)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    taken = tuple(outputs[a.output] if isinstance(a, Gradient) else a for a in rule.arguments(meta, outputs))
    results = rule.fake(*taken)
    results = (results,) if isinstance(results, Tensor) else tuple(results)
    return Cost(_size(*(t for t in (*taken, *results) if isinstance(t, Tensor))), 2 * forward.flops)


def _size(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _frames(make: Maker) -> Iterator[tuple[str, Tensor, int, int, int]]:
    """Frames (B, T, N, C) with their grid and pooled side, shared by the ops that start from frames."""
    yield "T=8, 7x7, identity pool", make.normal(2, 8, 49, 12), 7, 7, 7
    yield "T=2, odd grid and channels, strided", make.strided(1, 2, 15, 5), 3, 5, 2
    yield "T=16, pool larger than the grid", make.normal(1, 16, 4, 3), 2, 2, 3
    yield "T=32, one channel", make.normal(2, 32, 6, 1), 2, 3, 2
    yield "empty batch", make.normal(0, 8, 9, 4), 3, 3, 3


def _frame_tokens_samples(make: Maker) -> Iterator[Sample]:
    for rows, (label, x, height, width, pool) in zip((7, 2, 5, 1, 3), _frames(make), strict=True):
        channels = x.shape[3]
        weight = make.parameter(rows, channels, scale=channels**-0.5)
        yield Sample(label, (x, weight, make.parameter(rows), height, width, pool))


def _frame_tokens_cost(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, pool: int) -> Cost:
    batch, frames, _, channels = x.shape
    cells, rows = pool * pool, weight.shape[0]
    out = batch * frames * cells * rows
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    written = out * accumulator(x.dtype).itemsize
    return Cost(_size(x, weight, bias) + written, pooling + out * (2 * channels + 10))


def _correlation_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("T=8", (make.normal(2, 8, 343), 1 / 768))
    yield Sample("T=2, strided", (make.strided(1, 2, 5), 0.5))
    yield Sample("T=16, one value", (make.normal(3, 16, 1), 1.0))
    yield Sample("T=32", (make.normal(1, 32, 17), 0.1))
    yield Sample("empty batch", (make.normal(0, 8, 9), 1.0))


def _correlation_cost(tokens: Tensor, scale: float) -> Cost:
    batch, frames, width = tokens.shape
    out = batch * frames * frames
    return Cost(_size(tokens) + out * accumulator(tokens.dtype).itemsize, out * (2 * width + 1))


def _split_index_samples(make: Maker) -> Iterator[Sample]:
    for rows, (label, x, height, width, pool) in zip((7, 2, 5, 1, 3), _frames(make), strict=True):
        frames, channels = x.shape[1], x.shape[3]
        offset = (frames // 2, frames * frames)
        yield Sample(
            label,
            (
                x,
                make.parameter(rows, channels, scale=0.5 * channels**-0.5),
                make.parameter(rows, scale=0.1),
                make.parameter(*offset, scale=0.3),
                make.parameter(*offset, scale=0.3),
                height,
                width,
                pool,
                2.0,
            ),
        )


def _split_index_cost(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    height: int,
    width: int,
    pool: int,
    reach: float,
) -> Cost:
    batch, frames = x.shape[:2]
    tokens = _frame_tokens_cost(x, token_weight, token_bias, height, width, pool)
    width_of_tokens = token_weight.shape[0] * pool * pool
    pairs = batch * frames * frames
    offsets = 2 * (pairs * 5 + 2 * batch * static_weight.numel())
    written = (pairs + batch * frames) * accumulator(x.dtype).itemsize
    read = _size(x, token_weight, token_bias, static_weight, dynamic_weight)
    return Cost(read + written, tokens.flops + pairs * (2 * width_of_tokens + 1) + offsets)


def _topk_samples(make: Maker) -> Iterator[Sample]:
    for number, (label, x, height, width, pool) in enumerate(_frames(make)):
        yield Sample(label, (x, height, width, pool, number % 2 == 0))


def _topk_cost(x: Tensor, height: int, width: int, pool: int, order_prior: bool) -> Cost:
    batch, frames, _, channels = x.shape
    values = batch * frames * pool * pool * channels
    pooling = 0 if (height, width) == (pool, pool) else x.numel()
    return Cost(_size(x) + batch * frames * 8, pooling + 3 * values)


def _split_frames_samples(make: Maker) -> Iterator[Sample]:
    def norms(channels: int) -> list[Tensor]:
        return [make.parameter(channels, mean=mean, scale=0.3) for mean in (1.0, 0.0, 1.0, 0.0)]

    none = [None] * 4
    x = make.normal(2, 8, 9, 20)
    index = [make.positions(2, 4, 8), make.positions(2, 4, 8)]
    yield Sample("T=8, positions, norms", (x, *index, *norms(20), 1e-5, False))
    x = make.strided(1, 2, 3, 5)
    index = [make.positions(1, 1, 2), make.positions(1, 3, 2)]
    yield Sample("T=2, strided, unequal groups", (x, *index, *none, 1e-5, False))
    x = make.normal(3, 16, 4, 7)
    index = [make.frame_numbers(3, 8, 16), make.frame_numbers(3, 8, 16)]
    yield Sample("T=16, frame numbers, norms", (x, *index, *norms(7), 1e-5, False))
    x = make.normal(1, 32, 2, 33)
    index = [make.positions(1, 16, 32), make.positions(1, 16, 32)]
    yield Sample("T=32, aligned positions, norms", (x, *index, *norms(33), 1e-5, True))
    x = make.normal(2, 3, 5, 6)
    index = [make.frame_numbers(2, 2, 3), make.frame_numbers(2, 1, 3)]
    yield Sample("odd T, frame numbers", (x, *index, *none, 1e-5, False))
    x = make.normal(0, 8, 4, 6)
    index = [make.positions(0, 4, 8), make.positions(0, 4, 8)]
    yield Sample("empty batch", (x, *index, *norms(6), 1e-5, False))


def _split_frames_cost(
    x: Tensor,
    static_index: Tensor,
    dynamic_index: Tensor,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    dynamic_weight: Tensor | None,
    dynamic_bias: Tensor | None,
    eps: float,
    aligned: bool,
) -> Cost:
    batch, _, tokens, channels = x.shape
    out = batch * (static_index.shape[1] + dynamic_index.shape[1]) * tokens * channels
    read = _size(x, static_index, dynamic_index, static_weight, static_bias, dynamic_weight, dynamic_bias)
    flops = (3 if static_index.is_floating_point() else 0) + (8 if static_weight is not None else 0)
    return Cost(read + out * x.element_size(), out * flops)


def _static_dynamic_samples(make: Maker) -> Iterator[Sample]:
    for number, sample in enumerate(_split_index_samples(make)):
        x, *parameters, height, width, pool, reach = sample.args
        norms: list[Tensor | None] = [None] * 4
        if number != 1:
            norms = [make.parameter(x.shape[3], mean=mean, scale=0.3) for mean in (1.0, 0.0, 1.0, 0.0)]
        aligned = number == 2
        yield Sample(sample.label, (x, *parameters, *norms, height, width, pool, reach, 1e-2, aligned))


def _static_dynamic_cost(
    x: Tensor,
    token_weight: Tensor,
    token_bias: Tensor,
    static_weight: Tensor,
    dynamic_weight: Tensor,
    static_norm_weight: Tensor | None,
    static_norm_bias: Tensor | None,
    dynamic_norm_weight: Tensor | None,
    dynamic_norm_bias: Tensor | None,
    height: int,
    width: int,
    pool: int,
    reach: float,
    eps: float,
    aligned: bool,
) -> Cost:
    index = _split_index_cost(
        x, token_weight, token_bias, static_weight, dynamic_weight, height, width, pool, reach
    )
    positions = x.new_empty(x.shape[0], x.shape[1] // 2, dtype=accumulator(x.dtype))
    norms = (static_norm_weight, static_norm_bias, dynamic_norm_weight, dynamic_norm_bias)
    frames = _split_frames_cost(x, positions, positions, *norms, eps, aligned)
    # x is read once, and the indexes of split_index are what split_frames takes.
    return Cost(index.bytes + frames.bytes - _size(x, positions, positions), index.flops + frames.flops)


def _attention_samples(make: Maker) -> Iterator[Sample]:
    def packed(batch: int, tokens: int, heads: int, channels: int) -> list[Tensor]:
        query = make.normal(batch, tokens, heads, channels)
        key_value = make.normal(batch, tokens, 2, heads, channels)
        return [query, *key_value.unbind(2)]

    yield Sample("2 heads of 8, packed key and value", (*packed(2, 12, 2, 8), 8**-0.5))
    yield Sample("one token", (*packed(1, 1, 1, 3), 1.0))
    yield Sample("odd sizes, strided", (*(make.strided(1, 17, 3, 5) for _ in range(3)), 0.4))
    yield Sample("large scores", (*packed(1, 9, 1, 4), 12.0))
    yield Sample("empty batch", (*packed(0, 4, 2, 4), 0.5))


def _attention_cost(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Cost:
    batch, tokens, heads, channels = query.shape
    pairs = batch * heads * tokens * tokens
    return Cost(_size(query, key, value, query), pairs * (4 * channels + 5) + query.numel())


def _step_samples(make: Maker) -> Iterator[Sample]:
    for label, shape, heads, conditioned in (
        ("2 heads", (2, 12, 8), 2, False),
        ("self-conditioned, odd sizes", (1, 5, 9), 3, True),
        ("empty batch", (0, 4, 6), 1, False),
    ):
        channels = shape[2]
        parameters: list[Tensor] = []
        for rows in (channels, 2 * channels, channels):
            parameters += [make.normal(rows, channels, scale=channels**-0.5), make.normal(rows, scale=0.1)]
        yield Sample(label, (make.normal(*shape), make.normal(*shape), *parameters, heads, conditioned))


def _step_cost(target: Tensor, source: Tensor, *rest: Any) -> Cost:
    batch, tokens, channels = target.shape
    heads = rest[6]
    per_head = target.reshape(batch, tokens, heads, channels // heads)
    attention = _attention_cost(per_head, per_head, per_head, 1.0)
    projections = 8 * batch * tokens * channels * channels
    return Cost(_size(target, source, target, *rest[:6]), attention.flops + projections)


def _residual_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("T=8", (make.normal(2, 8, 9, 6), make.normal(2, 4, 9, 6)))
    yield Sample("T=2, strided", (make.strided(1, 2, 3, 5), make.strided(1, 1, 3, 5)))
    yield Sample("T=32, one channel", (make.normal(1, 32, 4, 1), make.normal(1, 16, 4, 1)))
    yield Sample("empty batch", (make.normal(0, 8, 4, 3), make.normal(0, 4, 4, 3)))


def _residual_cost(x: Tensor, approximation: Tensor) -> Cost:
    written = x.shape[0] * x.shape[2] * accumulator(x.dtype).itemsize
    return Cost(_size(x, approximation) + written, x.numel() + approximation.numel())


def _loss_samples(make: Maker) -> Iterator[Sample]:
    yield Sample("sum over clips", (make.normal(3, 7, 7), 0.1, 1.0, False))
    yield Sample("mean over clips, other beta", (make.normal(4, 5, scale=2.0), 1.0, 0.3, True))
    yield Sample("strided", (make.strided(2, 3, 5), 0.5, 1.0, False))
    yield Sample("one value a clip", (make.normal(3), 0.5, 1.0, True))
    yield Sample("empty batch", (make.normal(0, 7, 7), 0.1, 1.0, False))


def _loss_cost(residual: Tensor, weight: float, beta: float, mean: bool) -> Cost:
    return Cost(_size(residual) + accumulator(residual.dtype).itemsize, 4 * residual.numel())


def _pool_tokens_samples(make: Maker) -> Iterator[Sample]:
    for label, batch, grid, key_value_grid, heads, channels, stride_q, stride_kv, strided in (
        ("stride 1 and 2", 2, (2, 4, 4), None, 2, 8, (1, 1, 1), (1, 2, 2), False),
        ("strides 2 and 8, odd grid", 1, (2, 9, 11), None, 1, 5, (1, 2, 2), (1, 8, 8), False),
        ("stride 4, strided", 1, (8, 8, 5), None, 1, 4, (1, 1, 1), (1, 4, 4), True),
        ("stride in time, one cell", 1, (3, 1, 1), None, 3, 3, (2, 1, 1), (2, 1, 1), False),
        ("empty batch", 0, (2, 4, 4), None, 2, 4, (1, 2, 2), (1, 2, 2), False),
        ("keys and values apart", 2, (2, 6, 7), (2, 4, 5), 2, 8, (1, 1, 1), (1, 3, 3), False),
        ("apart, odd and strided", 1, (2, 5, 4), (1, 7, 1), 1, 5, (1, 2, 2), (1, 3, 1), True),
        ("apart, empty batch", 0, (2, 4, 4), (2, 2, 2), 2, 4, (1, 2, 2), (1, 3, 3), False),
    ):
        build = make.strided if strided else make.normal
        packed = heads * channels
        query = build(batch, 1 + math.prod(grid), packed if key_value_grid else 3 * packed)
        key_value = build(batch, 1 + math.prod(key_value_grid), 2 * packed) if key_value_grid else None
        weights = [make.parameter(channels, 1, 3, 3, 3, scale=0.2) for _ in range(3)]
        norms = [make.parameter(channels, mean=mean, scale=0.3) for _ in range(3) for mean in (1.0, 0.0)]
        sizes = (list(grid), list(key_value_grid or grid), heads, list(stride_q), list(stride_kv))
        yield Sample(label, (query, key_value, *weights, *norms, *sizes, 1e-6))


def _pool_tokens_cost(qkv: Tensor, key_value: Tensor | None, *rest: Any) -> Cost:
    parameters, (grid, key_value_grid, heads, stride_q, stride_kv) = rest[:9], rest[9:14]
    rows = qkv.shape[0] * heads * rest[0].shape[0]  # one token of q, k or v over batch, heads and channels
    parts = ((grid, stride_q), (key_value_grid, stride_kv), (key_value_grid, stride_kv))
    read = sum(len(ops.live_tokens(*part).rows) for part in parts)
    cells = [math.prod(ops.pooled_grid(*part)) for part in parts]
    written = sum(1 + n for n in cells)
    flops = rows * sum(54 * n + 8 * (1 + n) for n in cells)
    return Cost(_size(*parameters) + rows * (read + written) * qkv.element_size(), flops)


def _max_pool_tokens_samples(make: Maker) -> Iterator[Sample]:
    for label, batch, grid, channels, stride in (
        ("stride 2, odd grid", 2, (2, 7, 9), 8, (1, 2, 2)),
        ("stride 2, even grid", 1, (3, 4, 6), 5, (1, 2, 2)),
        ("every axis, odd stride", 1, (4, 6, 7), 3, (2, 3, 3)),
        ("stride 1", 1, (2, 2, 3), 4, (1, 1, 1)),
        ("longer than the axis", 2, (1, 1, 5), 1, (2, 2, 9)),
        ("empty batch", 0, (2, 4, 4), 4, (1, 2, 2)),
    ):
        yield Sample(label, (make.normal(batch, 1 + math.prod(grid), channels), list(grid), list(stride)))
    yield Sample("strided", (make.strided(2, 1 + 2 * 5 * 4, 6), [2, 5, 4], [1, 2, 2]))


def _max_pool_tokens_cost(x: Tensor, grid: list[int], stride: list[int]) -> Cost:
    results = x.shape[0] * math.prod(ops.pooled_grid(grid, stride)) * x.shape[2]
    window = math.prod(step + 1 if step > 1 else 1 for step in stride)
    kept = results * torch.int32.itemsize
    class_tokens = x.shape[0] * x.shape[2]
    return Cost(_size(x) + (results + class_tokens) * x.element_size() + kept, results * (window - 1))


def _linear_samples(make: Maker) -> Iterator[Sample]:
    for label, shape, width in (
        ("tokens", (2, 9, 32), 8),
        ("rows, odd sizes", (7, 5), 3),
        ("one row", (1, 1, 16), 1),
        ("empty batch", (0, 4, 8), 6),
    ):
        weight = make.parameter(width, shape[-1], scale=shape[-1] ** -0.5)
        yield Sample(label, (make.normal(*shape), weight, make.parameter(width, scale=0.3)))
    yield Sample("strided", (make.strided(2, 5, 6), make.strided(4, 6), make.strided(4)))


def _linear_cost(x: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    rows, out = x.numel() // x.shape[-1], weight.shape[0]
    return Cost(_size(x, weight, bias) + rows * out * x.element_size(), 2 * x.numel() * out)


def _gelu_linear_cost(x: Tensor, weight: Tensor, bias: Tensor) -> Cost:
    return _linear_cost(x, weight, bias) + Cost(0, 8 * x.numel())


def _pooled_attention_samples(make: Maker) -> Iterator[Sample]:
    for label, batch, q_grid, k_grid, heads, channels, strided in (
        ("equal grids", 2, (2, 3, 3), (2, 3, 3), 2, 8, False),
        ("coarser keys, odd sizes, strided", 1, (2, 6, 9), (2, 3, 3), 1, 5, True),
        ("finer keys", 1, (2, 2, 2), (2, 4, 4), 2, 4, False),
        ("T=8, one cell a frame", 1, (8, 1, 1), (8, 1, 1), 1, 3, False),
        ("uneven ratio", 1, (3, 5, 4), (2, 2, 3), 1, 4, False),
        ("empty batch", 0, (2, 2, 2), (2, 2, 2), 1, 4, False),
    ):
        build = make.strided if strided else make.normal
        query = build(batch, 1 + math.prod(q_grid), heads, channels)
        key, value = (build(batch, 1 + math.prod(k_grid), heads, channels) for _ in range(2))
        tables = [
            make.parameter(table_length(q_grid[axis], k_grid[axis]), channels, scale=0.5)
            for axis in (1, 2, 0)
        ]
        yield Sample(label, (query, key, value, *tables, list(q_grid), list(k_grid), channels**-0.5))


def _pooled_attention_cost(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table_h: Tensor,
    table_w: Tensor,
    table_t: Tensor,
    q_grid: list[int],
    k_grid: list[int],
    scale: float,
) -> Cost:
    batch, rows, heads, channels = query.shape
    pairs = batch * heads * rows * key.shape[1]
    position = 2 * batch * heads * math.prod(q_grid) * sum(k_grid) * channels
    moved = _size(query, key, value, table_h, table_w, table_t, query)
    return Cost(moved, pairs * (4 * channels + 8) + position + query.numel())


_ROUNDING = "arithmetic is in float32 or wider; "

REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "frame_tokens",
            ops.frame_tokens,
            _frame_tokens_samples,
            _frame_tokens_cost,
            roundings=16,
            why="a sum of C products in float32 errs by about sqrt(C) roundings of its terms, then one GELU",
        ),
        Entry(
            "frame_correlation",
            ops.frame_correlation,
            _correlation_samples,
            _correlation_cost,
            roundings=8,
            why="sums of D products in float32",
        ),
        Entry(
            "split_index",
            ops.split_index,
            _split_index_samples,
            _split_index_cost,
            roundings=32,
            why="tokens, correlation and two softmaxes in a row; tanh damps, T*T weights add up",
        ),
        Entry(
            "topk_split_index",
            ops.topk_split_index,
            _topk_samples,
            _topk_cost,
            roundings=0,
            why="integers: exact wherever two scores differ by more than their own rounding",
        ),
        Entry(
            "split_frames",
            ops.split_frames,
            _split_frames_samples,
            _split_frames_cost,
            roundings=48,
            why=_ROUNDING + "the position is a float32 number of up to T, so f carries T/2 roundings;"
            " the norm divides by the group's deviation",
        ),
        Entry(
            "static_dynamic_split",
            ops.static_dynamic_split,
            _static_dynamic_samples,
            _static_dynamic_cost,
            roundings=64,
            why="that of split_frames, at positions that carry the error of split_index",
        ),
        Entry(
            "lifting_attention",
            ops.lifting_attention,
            _attention_samples,
            _attention_cost,
            roundings=16,
            why=_ROUNDING + "an error of a score (its size times a rounding) is one of its probability",
        ),
        Entry(
            "lifting_update",
            ops.lifting_update,
            _step_samples,
            _step_cost,
            roundings=16,
            why="three matrix products in the given precision around lifting_attention",
        ),
        Entry(
            "lifting_predict",
            ops.lifting_predict,
            _step_samples,
            _step_cost,
            roundings=16,
            why="as lifting_update",
        ),
        Entry(
            "lifting_residual",
            ops.lifting_residual,
            _residual_samples,
            _residual_cost,
            roundings=16,
            why="two means that nearly cancel: the bound is relative to a result of 1/sqrt(T*C) the inputs'",
        ),
        Entry(
            "lifting_loss",
            ops.lifting_loss,
            _loss_samples,
            _loss_cost,
            roundings=32,
            why="one sum of non-negative terms in float32, of up to tens of thousands of cells",
        ),
        Entry(
            "pool_tokens",
            ops.pool_tokens,
            _pool_tokens_samples,
            _pool_tokens_cost,
            roundings=32,
            why=_ROUNDING + "27 products a sum, then a division by the deviation of d values",
        ),
        Entry(
            "max_pool_tokens",
            ops.max_pool_tokens,
            _max_pool_tokens_samples,
            _max_pool_tokens_cost,
            roundings=1,
            why="a result is one of the inputs; its gradient, one sum of a few, rounds once",
        ),
        Entry(
            "gelu_linear",
            ops.gelu_linear,
            _linear_samples,
            _gelu_linear_cost,
            roundings=16,
            why="the activation is rounded to the given dtype before one matrix product in it",
        ),
        Entry(
            "linear",
            ops.linear,
            _linear_samples,
            _linear_cost,
            roundings=16,
            why="one matrix product in the given dtype, or in float32 and rounded once",
        ),
        Entry(
            "pooled_attention",
            ops.pooled_attention,
            _pooled_attention_samples,
            _pooled_attention_cost,
            roundings=16,
            why=_ROUNDING + "an error of a score (its size times a rounding) is one of its probability",
        ),
    )
}
