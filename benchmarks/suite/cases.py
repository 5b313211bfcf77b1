"""The cases: each op, module and network at the shapes of the network, with everybody who takes part."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import original
from benchmarks.rivals import (
    attention,
    blocks,
    deployment,
    lifting,
    network,
    pooling,
    products,
    splitting,
    vision,
)
from benchmarks.rivals.contender import Contender, Inputs, Outputs
from benchmarks.suite import costs, ours
from benchmarks.suite.shapes import BlockShape, NetworkShape, network_shape
from ifdd import IFDD, IFDDConfig
from ifdd.modules import LADM
from ifdd.modules import MultiscaleBlock as Block
from ifdd_kernels import _arguments
from ifdd_kernels._arguments import Arguments
from ifdd_kernels.registry import REGISTRY, Cost, Maker, backward_cost


@dataclass(frozen=True)
class Case:
    """Something to compute at one shape and batch, and the implementations of it."""

    name: str
    label: str
    batch: int
    #: How often the shape occurs in the network.
    count: int
    make: Callable[[Maker], Inputs]
    truth: Contender
    contenders: tuple[Contender, ...]
    #: Least bytes and FLOPs of the forward pass, or with the gradients (True), for activations of a dtype.
    cost: Callable[[Inputs, torch.dtype, bool], Cost]
    #: Names of the outputs.
    outputs: tuple[str, ...]
    frames: int
    image_size: int
    #: Of the activations in every precision; None: the precision's.
    dtype: torch.dtype | None = None
    differentiable: bool = True
    #: Whether a maximum is pooled inside: its gradient jumps where two values are nearly equal.
    discontinuous: bool = False
    #: Whether each clip has a row in every activation and output, and depends on no other: the truth then
    #: goes clip by clip, and sixteen clips in float64 need the memory of one.
    clipwise: bool = False
    #: The contender that ratios and error bounds refer to.
    anchor: str = "original"

    def identity(self, precision: str, pass_name: str) -> dict[str, Any]:
        """The fields of a row that name the measurement."""
        names = ("label", "batch", "frames", "image_size", "count")
        sizes = {name: getattr(self, name) for name in names}
        return {"case": self.name, **sizes, "precision": precision, "pass": pass_name}

    def only(self, names: Iterable[str]) -> Case:
        """With these contenders."""
        wanted = set(names)
        return replace(self, contenders=tuple(c for c in self.contenders if c.name in wanted))


def _op_cost(op: str) -> Callable[[Inputs, torch.dtype, bool], Cost]:
    entry = REGISTRY[op]

    def cost(inputs: Inputs, _: torch.dtype, training: bool) -> Cost:
        arguments = ours.meta_arguments(op, inputs)
        total = entry.cost(*arguments)
        return total + backward_cost(entry, arguments) if training else total

    return cost


def _op_case(
    op: str,
    label: str,
    shape: NetworkShape,
    batch: int,
    device: str,
    make: Callable[[Maker], Inputs],
    rivals: list[Contender],
    outputs: tuple[str, ...],
    count: int = 1,
) -> Case:
    operator = REGISTRY[op].operator
    return Case(
        op,
        label,
        batch,
        count,
        make,
        # What decomposes into other ops has no definition of its own: the original is one.
        rivals[0] if operator is None else ours.definition(op),
        (*rivals, *ours.op_contenders(op, device)),
        _op_cost(op),
        outputs,
        shape.config.clip_frames,
        shape.config.image_size,
        differentiable=operator is None or operator.backward is not None,
        clipwise=op in ("pool_tokens", "pooled_attention"),
    )


def _inputs(arguments: Arguments) -> Inputs:
    return Inputs(arguments.activations, arguments.parameters, arguments.constants)


def pool_tokens(shape: NetworkShape, block: BlockShape, batch: int, device: str) -> Case:
    """Pooling of q, k and v in one block."""

    def make(maker: Maker) -> Inputs:
        b = block
        return _inputs(
            _arguments.pool_tokens(maker, batch, b.grid, b.heads, b.head_dim, b.stride_q, b.stride_kv)
        )

    label, outputs = f"block {block.label}", ("query", "key", "value")
    rivals = pooling.contenders()
    return _op_case("pool_tokens", label, shape, batch, device, make, rivals, outputs, block.count)


def max_pool_tokens(shape: NetworkShape, block: BlockShape, batch: int, device: str) -> Case:
    """The shortcut of a block that strides its queries."""

    def make(maker: Maker) -> Inputs:
        x = maker.normal(batch, block.tokens, block.out_channels)
        return Inputs({"x": x}, {}, {"grid": list(block.grid), "stride": list(block.stride_q)})

    label, rivals = f"block {block.label}", blocks.shortcut()
    case = _op_case("max_pool_tokens", label, shape, batch, device, make, rivals, ("out",), block.count)
    return replace(case, discontinuous=True)


def add_layer_norm(shape: NetworkShape, block: BlockShape, batch: int, device: str) -> Case:
    """The attention's branch joined and normalised, no sample dropped."""

    def make(maker: Maker) -> Inputs:
        sizes = (batch, 1 + math.prod(block.q_grid), block.out_channels)
        return _inputs(_arguments.add_layer_norm(maker, sizes, dropped=False))

    label, rivals, outputs = f"block {block.label}", blocks.joined(), ("added", "normed")
    return _op_case("add_layer_norm", label, shape, batch, device, make, rivals, outputs, 2 * block.count)


def half_of_mlp(op: str, shape: NetworkShape, block: BlockShape, batch: int, device: str) -> Case:
    """First (`linear`) or second (`gelu_linear`) half of a block's MLP."""
    wide, narrow = 4 * block.out_channels, block.out_channels
    width, out = (narrow, wide) if op == "linear" else (wide, narrow)

    def make(maker: Maker) -> Inputs:
        # A weight in the activations' dtype, as PyTorch's linear wants it.
        weight = maker.normal(out, width, scale=width**-0.5)
        parameters = {"weight": weight, "bias": maker.normal(out, scale=0.1)}
        return Inputs({"x": maker.normal(batch, 1 + math.prod(block.q_grid), width)}, parameters)

    label, rivals = f"block {block.label}", blocks.half_of_mlp(op)
    return _op_case(op, label, shape, batch, device, make, rivals, ("out",), block.count)


def around_attention(shape: NetworkShape, batch: int, device: str) -> list[Case]:
    """The other ops of a block, once a stage."""
    firsts = [next(b for b in shape.blocks if b.stage == stage) for stage in range(4)]
    strided = [b for b in firsts if max(b.stride_q) > 1]
    return [
        *(add_layer_norm(shape, b, batch, device) for b in firsts),
        *(max_pool_tokens(shape, b, batch, device) for b in strided),
        *(half_of_mlp(op, shape, b, batch, device) for op in ("linear", "gelu_linear") for b in firsts),
    ]


def pooled_attention(shape: NetworkShape, block: BlockShape, batch: int, device: str) -> Case:
    """Attention of one block."""

    def make(maker: Maker) -> Inputs:
        b = block
        return _inputs(
            _arguments.pooled_attention(maker, batch, b.q_grid, b.k_grid, b.heads, b.head_dim, bias=0.3)
        )

    label, rivals = f"block {block.label}", attention.contenders()
    return _op_case("pooled_attention", label, shape, batch, device, make, rivals, ("out",), block.count)


def _frames(shape: NetworkShape, maker: Maker, batch: int, frames: int) -> Tensor:
    return maker.normal(batch, frames, shape.grid[0] * shape.grid[1], shape.channels)


def _pooling(shape: NetworkShape) -> tuple[int, int, int, int]:
    """Grid, pooled side and channels of the tokens that frames are correlated by."""
    pool = shape.config.split_pool
    return *shape.grid, pool, pool


def issm(shape: NetworkShape, batch: int, device: str, frames: int | None = None) -> Case:
    """The splitting module: frames to both normalised groups. ``frames``: T of the tokens."""
    length = frames or shape.frames

    def make(maker: Maker) -> Inputs:
        x = _frames(shape, maker, batch, length)
        return _inputs(_arguments.static_dynamic_split(maker, x, *_pooling(shape)))

    def cost(_: Inputs, dtype: torch.dtype, training: bool) -> Cost:
        return costs.total(costs.issm(shape, batch, length, dtype), training)

    rivals = splitting.issm()
    return Case(
        "issm",
        f"{length} frames",
        batch,
        1,
        make,
        rivals[0],
        (*rivals, *ours.issm_contenders(device)),
        cost,
        ("static", "dynamic"),
        length,
        shape.config.image_size,
    )


def small_ops(shape: NetworkShape, batch: int, device: str) -> list[Case]:
    """The ops of splitting and lifting, one by one."""
    length, half = shape.frames, shape.frames // 2
    tokens = shape.grid[0] * shape.grid[1]
    channels, heads, pool = shape.channels, shape.heads, shape.config.split_pool
    rows = half * tokens

    def frames(maker: Maker) -> Tensor:
        return _frames(shape, maker, batch, length)

    def split_index(maker: Maker) -> Inputs:
        return _inputs(_arguments.split_index(maker, frames(maker), *_pooling(shape)))

    def frame_tokens(maker: Maker) -> Inputs:
        return _inputs(_arguments.frame_tokens(maker, frames(maker), *_pooling(shape)))

    def frame_correlation(maker: Maker) -> Inputs:
        return Inputs({"tokens": maker.normal(batch, length, pool**3)}, {}, {"scale": 1 / channels})

    def topk(maker: Maker) -> Inputs:
        constants = {"height": shape.grid[0], "width": shape.grid[1], "pool": pool, "order_prior": False}
        return Inputs({"x": frames(maker)}, {}, constants)

    def split_frames(maker: Maker) -> Inputs:
        static, dynamic = (maker.positions(batch, half, length) for _ in range(2))
        return _inputs(_arguments.split_frames(maker, frames(maker), static, dynamic))

    def lifting_attention(maker: Maker) -> Inputs:
        return _inputs(_arguments.lifting_attention(maker, batch, rows, heads, channels // heads))

    def step(maker: Maker) -> Inputs:
        target, source = (maker.normal(batch, rows, channels) for _ in range(2))
        return _inputs(_arguments.lifting_step(maker, target, source, heads, autocast=True))

    def residual(maker: Maker) -> Inputs:
        return Inputs({"x": frames(maker), "approximation": maker.normal(batch, half, tokens, channels)})

    def loss(maker: Maker) -> Inputs:
        constants = {"weight": 0.1, "beta": 1.0, "mean": False}
        return Inputs({"residual": maker.normal(batch, *shape.grid)}, {}, constants)

    positions = ("static_index", "dynamic_index")
    table: list[tuple[str, Callable[[Maker], Inputs], list[Contender], tuple[str, ...]]] = [
        ("frame_tokens", frame_tokens, splitting.frame_tokens(), ("tokens",)),
        ("frame_correlation", frame_correlation, splitting.frame_correlation(), ("correlation",)),
        ("split_index", split_index, splitting.split_index(), (*positions, "correlation")),
        ("topk_split_index", topk, splitting.topk_split_index(), positions),
        ("split_frames", split_frames, splitting.split_frames(), ("static", "dynamic")),
        ("lifting_attention", lifting_attention, lifting.lifting_attention(), ("out",)),
        ("lifting_update", step, lifting.lifting_step(1), ("out",)),
        ("lifting_predict", step, lifting.lifting_step(-1), ("out",)),
        ("lifting_residual", residual, lifting.lifting_residual(), ("residual",)),
        ("lifting_loss", loss, lifting.lifting_loss(), ("loss",)),
    ]
    return [
        _op_case(op, "network", shape, batch, device, make, rivals, outputs)
        for op, make, rivals, outputs in table
    ]


def _module_case(
    name: str,
    label: str,
    shape: NetworkShape,
    batch: int,
    make_original: Callable[[], nn.Module],
    x: Callable[[Maker], Tensor],
    make_ours: Callable[[], nn.Module],
    part: str,
    order: Callable[[nn.Module, Tensor], Outputs],
    original_order: Callable[[nn.Module, Tensor], Outputs],
    layers: Callable[[torch.dtype], list[costs.Layer]],
    outputs: tuple[str, ...],
    capturable: bool = False,
    dtype: torch.dtype | None = None,
) -> Case:
    source = functools.cache(make_original)

    def make(maker: Maker) -> Inputs:
        # A network's clips are float32 in every precision, and nobody asks for their gradient.
        return Inputs({"x": x(maker)}, {}, {"original": source()}, differentiate=dtype is None)

    rivals = network.original_and_rewrite(original_order, part, capturable)
    mine = ours.module_contender(make_ours, part, order)
    truth = rivals[0]
    return Case(
        name,
        label,
        batch,
        1,
        make,
        truth,
        (*rivals, mine, mine.compile()),
        lambda _, activations, training: costs.total(layers(activations), training),
        outputs,
        shape.config.clip_frames,
        shape.config.image_size,
        dtype,
        discontinuous=name != "ladm",
    )


def _seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return seeded


def ladm(shape: NetworkShape, batch: int, device: str) -> Case:
    """Splitting and lifting, refinement included: tokens to the dynamic feature and the residual."""
    del device
    arguments = (shape.channels, shape.frames, shape.grid)

    def make_original() -> nn.Module:
        split = original.InterpolatedSplit(*arguments, pool=shape.config.split_pool)
        return original.LADM(*arguments, split, heads=shape.heads, drop_path=0.0)

    def mine() -> nn.Module:
        return LADM(shape.frames, shape.grid, shape.channels, shape.heads, drop_path=0.0)

    tokens = shape.frames * shape.grid[0] * shape.grid[1]
    return _module_case(
        "ladm",
        "network",
        shape,
        batch,
        _seeded(make_original),
        lambda maker: maker.normal(batch, tokens, shape.channels),
        mine,
        "ladm",
        lambda module, x: tuple(module(x)),
        lambda module, x: tuple(reversed(module(x))),
        functools.partial(costs.ladm, shape, batch),
        ("feature", "residual"),
        capturable=True,
    )


def block(shape: NetworkShape, which: BlockShape, batch: int, device: str) -> Case:
    """One block of the backbone."""
    del device
    sizes = (which.grid, which.in_channels, which.out_channels, which.heads, which.stride_q, which.stride_kv)
    return _module_case(
        "block",
        f"block {which.label}",
        shape,
        batch,
        _seeded(lambda: original.MultiscaleBlock(*sizes)),
        lambda maker: maker.normal(batch, which.tokens, which.in_channels),
        lambda: Block(*sizes),
        "block",
        lambda module, x: (module(x)[0],),
        lambda module, x: (module(x, which.grid)[0],),
        functools.partial(costs.block, which, batch),
        ("tokens",),
    )


def model(config: IFDDConfig, batch: int, device: str) -> Case:
    """The whole network: clips to logits and lifting residual; gradients of all parameters."""
    del device
    config = replace(config, dropout=0.0, drop_path=0.0)
    size, length = config.image_size, config.clip_frames

    def make_original() -> nn.Module:
        return original.OriginalIFDD(
            config.num_classes,
            clip_frames=length,
            image_size=size,
            embed_dim=config.stage_channels[0],
            depths=config.stage_depths,
            ladm_heads=config.lifting_heads,
            dropout=0.0,
            drop_path=0.0,
        )

    def clip(maker: Maker) -> Tensor:
        return torch.sigmoid(maker.normal(batch, 3, length, size, size))

    def order(module: nn.Module, x: Tensor) -> Outputs:
        output = module(x)
        return output.logits, output.lifting_residual

    return _module_case(
        "model",
        f"{config.backbone} {length}x{size}x{size}",
        network_shape(config),
        batch,
        _seeded(make_original),
        clip,
        lambda: IFDD(config),
        "model",
        order,
        order,
        functools.partial(costs.network, network_shape(config), batch),
        ("logits", "lifting_residual"),
        dtype=torch.float32,
    )


def deployed(config: IFDDConfig, batch: int) -> Case:
    """The whole network beside its exported files in deployment runtimes, for inference on a CPU.

    With the time of plain products of the same FLOPs, in the precision of the run.
    """
    config = replace(config, dropout=0.0, drop_path=0.0)
    case = model(config, batch, "cpu").only(("original", "ifdd"))

    def flops(inputs: Inputs) -> int:
        return case.cost(inputs, torch.float32, False).flops

    rivals = (*deployment.contenders(config), products.contender(flops))
    return replace(case, contenders=(*case.contenders, *rivals))


def backbone_s(batch: int) -> Case:
    """Embedding and backbone of the S network beside torchvision's, clips to class token."""
    shape = network_shape(vision.CONFIG)
    size, length = vision.CONFIG.image_size, vision.CONFIG.clip_frames
    source = functools.cache(_seeded(vision.make))

    def make(maker: Maker) -> Inputs:
        x = torch.sigmoid(maker.normal(batch, 3, length, size, size))
        return Inputs({"x": x}, {}, {"original": source()}, differentiate=False)

    def cost(_: Inputs, dtype: torch.dtype, training: bool) -> Cost:
        return costs.total(costs.embedding_and_blocks(shape, batch, dtype), training)

    rivals = vision.contenders()
    return Case(
        "backbone_s",
        f"mvit_s {length}x{size}x{size}",
        batch,
        1,
        make,
        rivals[0],
        tuple(rivals),
        cost,
        ("class_token",),
        length,
        size,
        torch.float32,
        discontinuous=True,
        anchor=rivals[0].name,
    )
