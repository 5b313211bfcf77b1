"""Launches of PyTorch's ops on lists of tensors (``torch._foreach_*`` and fused optimisers) on CUDA.

``multi_tensor_apply`` packs chunks of 65,536 values of as many tensors into a launch as its arguments have
room for (aten/src/ATen/native/cuda/MultiTensorApply.cuh of PyTorch 2.13).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

CHUNK = 65_536
BLOCKS = 320
#: Tensors of a launch by the number of lists, 1 to 5.
TENSORS = (110, 64, 48, 36, 30)


def is_on_lists(name: str) -> bool:
    """Whether an op, by its name without namespace, works on lists of tensors."""
    return name.startswith(("_foreach_", "_fused_adam"))


def launches(name: str, args: Sequence[Any]) -> int:
    """Launches of such an op for its positional arguments."""
    lists = [
        part for part in args if isinstance(part, (list, tuple)) and part and isinstance(part[0], Tensor)
    ]
    # The steps of a fused optimiser, one number a tensor, travel beside its lists.
    depth = sum(1 for part in lists if any(tensor.dim() for tensor in part))
    return packed([tensor.numel() for tensor in lists[0]], max(depth, 1))


def packed(sizes: Sequence[int], depth: int) -> int:
    """Launches for ``depth`` lists of tensors of these sizes."""
    started = blocks = tensors = 0
    for size in sizes:
        chunks = -(-size // CHUNK)
        if not chunks:
            continue
        tensors += 1
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            full = blocks == BLOCKS or (last and tensors == TENSORS[depth - 1])
            if full:
                started += 1
                blocks, tensors = 0, 0 if last else 1
    return started + bool(blocks)
