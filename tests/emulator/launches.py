"""How the launchers of all CUDA kernels divide their work at the network's shapes: threads and dynamic shared
memory of blocks, told by the launchers themselves. Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.suite.shapes import live_pooling, network_shape
from emulator.build import EmulatedOp, Launch
from emulator.compare import DTYPES
from ifdd import IFDDConfig
from ifdd_kernels import _arguments
from ifdd_kernels._arguments import Unfilled
from ifdd_kernels._schema import outputs_of


def launches(shared_bytes: int) -> Iterator[Launch]:
    """Of a device with that much shared memory for a block."""
    for dtype in DTYPES:
        for name, args in _network(dtype):
            op = EmulatedOp(name)
            op.library.configure(0, shared_bytes=shared_bytes, list_only=True)
            try:
                outputs = outputs_of(op.forward(*args))
                if op.operator.wiring is not None:
                    op.backward(*op.operator.wiring.arguments(args, outputs, outputs))
            finally:
                op.library.configure(0)
            yield from op.library.listed()


def _network(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Op and arguments; nobody looks at the values. Heads of all sizes that attention is compiled for."""
    shape = network_shape(IFDDConfig())
    make = Unfilled(dtype, "cpu")
    for block in shape.blocks:
        yield "pool_tokens", live_pooling(make, block).of("pool_tokens")
    for channels in dict.fromkeys(block.out_channels for block in shape.blocks):
        yield "add_layer_norm", _arguments.add_layer_norm(make, (1, 8, channels)).of("add_layer_norm")
    side = IFDDConfig().image_size
    crop, steps = [[0, 0, side, side]], [[0, 1, 2, 3]]
    clips = _arguments.augment_clips(make, make.pixels(1, 2, side, side, 3), crop, steps, side)
    yield "augment_clips", clips.of("augment_clips")
    (height, width), frames, channels = shape.grid, shape.frames, shape.channels
    x = make.normal(1, frames, height * width, channels)
    grid = (height, width, height)
    yield "frame_tokens", _arguments.frame_tokens(make, x, *grid, rows=height).of("frame_tokens")
    yield "frame_correlation", (make.normal(1, frames, height**3), 1 / channels)
    yield "split_index", _arguments.split_index(make, x, *grid, rows=height).of("split_index")
    yield "topk_split_index", (x, *grid, True)
    index = [make.positions(1, frames // 2, frames) for _ in range(2)]
    yield "split_frames", _arguments.split_frames(make, x, *index).of("split_frames")
    tokens = frames // 2 * height * width
    for head_dim in (32, 64, 96, 128):
        arguments = _arguments.lifting_attention(make, 1, tokens, shape.heads, head_dim)
        yield "lifting_attention", (*(t.contiguous() for t in arguments.activations.values()), 1.0)
    yield "lifting_residual", (x, x[:, ::2])
    yield "lifting_loss", (make.normal(1, height * width), 1.0, 1.0, False)
