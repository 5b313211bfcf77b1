"""Launches of the CUDA C++ ops: their host code is compiled and cannot be traced.

tests/emulator/test_launch_table.py holds the table against the launchers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: Values that a block of ``lifting_loss`` adds up, as ``kChunk`` of csrc/cuda/lifting_loss.cu.
LOSS_CHUNK = 16384


@dataclass(frozen=True)
class NativeOp:
    """Launches of an op, and bytes of its large intermediate results, each written once and read once.

    Both may depend on the op's arguments. Partial sums of a few rows are left out.
    """

    launches: int | Callable[[Sequence[Any]], int]
    scratch: Callable[[Sequence[Any]], int] = lambda args: 0

    def started(self, args: Sequence[Any]) -> int:
        """Launches for the arguments of the schema."""
        return self.launches if isinstance(self.launches, int) else self.launches(args)


def _loss_launches(args: Sequence[Any]) -> int:
    residual: Tensor = args[0]
    return 1 if residual.numel() <= LOSS_CHUNK else 2


def _convolution_gradient(args: Sequence[Any]) -> int:
    """The gradient of the convolutions' results in float32: as many values as query, key and value have."""
    return 4 * sum(math.prod(grad.shape) for grad in args[:3])


#: By the name of the registered op.
NATIVE: Mapping[str, NativeOp] = {
    "add_layer_norm": NativeOp(1),
    "add_layer_norm_backward": NativeOp(2),
    "augment_clips": NativeOp(2),
    "frame_correlation": NativeOp(1),
    "frame_correlation_backward": NativeOp(1),
    "frame_tokens": NativeOp(1),
    "frame_tokens_backward": NativeOp(4),
    "split_index": NativeOp(2),
    "split_index_backward": NativeOp(8),
    "topk_split_index": NativeOp(2),
    "split_frames": NativeOp(1),
    "split_frames_backward": NativeOp(2),
    "lifting_attention": NativeOp(1),
    "lifting_attention_backward": NativeOp(2),
    "lifting_residual": NativeOp(1),
    "lifting_residual_backward": NativeOp(2),
    "lifting_loss": NativeOp(_loss_launches),
    "lifting_loss_backward": NativeOp(1),
    "pool_tokens": NativeOp(1),
    "pool_tokens_backward": NativeOp(3, _convolution_gradient),
}
