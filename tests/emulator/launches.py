"""How the launchers of all CUDA kernels divide their work at the network's shapes: threads and dynamic shared
memory of blocks, told by the launchers themselves. Nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import BlockShape, network_shape
from emulator.build import EmulatedOp, Launch
from emulator.compare import DTYPES, backward_arguments
from ifdd import IFDDConfig
from ifdd_kernels.ops.pool_tokens import live_tokens
from ops.cases import outputs_of


def launches(shared_bytes: int) -> Iterator[Launch]:
    """Of a device with that much shared memory for a block."""
    for dtype in DTYPES:
        for name, args in _network(dtype):
            op = EmulatedOp(name)
            op.library.configure(0, shared_bytes=shared_bytes, list_only=True)
            try:
                outputs = outputs_of(op.forward(*args))
                if op.operator.backward is not None:
                    op.backward(
                        *backward_arguments(op, args, [torch.empty_like(out) for out in outputs], outputs)
                    )
            finally:
                op.library.configure(0)
            yield from op.library.listed()


def _network(dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Op and arguments; nobody looks at the values. Heads of all sizes that attention is compiled for."""
    shape = network_shape(IFDDConfig())
    for block in shape.blocks:
        yield "pool_tokens", _pooling(block, dtype)
    (height, width), frames, channels = shape.grid, shape.frames, shape.channels
    x = torch.empty(1, frames, height * width, channels, dtype=dtype)
    weight, bias = torch.empty(height, channels), torch.empty(height)
    grid = (height, width, height)
    yield "frame_tokens", (x, weight, bias, *grid)
    yield "frame_correlation", (torch.empty(1, frames, height**3, dtype=dtype), 1 / channels)
    offsets = [torch.empty(frames // 2, frames**2) for _ in range(2)]
    yield "split_index", (x, weight, bias, *offsets, *grid, 1.0)
    yield "topk_split_index", (x, *grid, True)
    index, norms = [torch.empty(1, frames // 2)] * 2, [torch.empty(channels)] * 4
    yield "split_frames", (x, *index, *norms, 1e-5, False)
    tokens = frames // 2 * height * width
    for head_dim in (32, 64, 96, 128):
        yield "lifting_attention", (*[torch.empty(1, tokens, shape.heads, head_dim, dtype=dtype)] * 3, 1.0)
    yield "lifting_residual", (x, x[:, ::2])
    yield "lifting_loss", (torch.empty(1, height * width, dtype=dtype), 1.0, 1.0, False)


def _pooling(block: BlockShape, dtype: torch.dtype) -> tuple[Any, ...]:
    """Keys and values of the tokens alone that a window covers, as the backbone gives them."""
    channels, d = block.out_channels, block.head_dim
    live = live_tokens(block.grid, block.stride_kv, device="cpu")
    apart = live.grid != block.grid
    qkv = torch.empty(1, block.tokens, channels if apart else 3 * channels, dtype=dtype)
    key_value = torch.empty(1, 1 + math.prod(live.grid), 2 * channels, dtype=dtype) if apart else None
    parameters: list[Tensor] = [torch.empty(d, 1, 3, 3, 3)] * 3 + [torch.empty(d)] * 6
    grids, strides = (list(block.grid), list(live.grid)), (list(block.stride_q), list(live.stride))
    return (qkv, key_value, *parameters, *grids, block.heads, *strides, 1e-6)
