"""Weights in autocast's dtype, made together.

Autocast casts each weight where it is used, and its gradient back: a GPU starts a launch for each, more than
for the products. Here one launch casts the weights of several layers, and one their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

#: By the id of a tensor: the tensor, which must not end before its id is asked for, and its copy.
_ACTIVE: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar("_ACTIVE", default=None)


class _Lower(torch.autograd.Function):
    """Copies of float32 tensors in another dtype; their gradients in float32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *wide: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return _copied(wide, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        wide = iter(_copied([grad for grad in grads if grad is not None], torch.float32))
        return None, *(None if grad is None else next(wide) for grad in grads)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


def eager_on_gpu(x: Tensor) -> bool:
    """Whether x is on a GPU and ops on it run one by one: what saves launches and passes is worth it there.

    Compilers fuse casts, sums and norms themselves; transforms of `torch.func` take no function like the one
    above, and `torch.jit.trace` cannot save it.
    """
    return (
        x.is_cuda
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def lowered_dtype(x: Tensor) -> torch.dtype | None:
    """The 16-bit dtype that autocast gives to layers on x, a tensor on a GPU; None where there is none.

    On a CPU the ops read float32 weights as they are.
    """
    if not eager_on_gpu(x) or not torch.is_autocast_enabled("cuda"):
        return None
    dtype = torch.get_autocast_dtype("cuda")
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


@contextmanager
def lowered(weights: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Inside, `lowered_weight` knows the float32 tensors among these in another dtype.

    Those that it knows already, from around it, are not cast again.
    """
    known = _ACTIVE.get() or {}
    wide = [tensor for tensor in weights if tensor.dtype == torch.float32 and id(tensor) not in known]
    trained = [tensor for tensor in wide if tensor.requires_grad]
    frozen = [tensor for tensor in wide if not tensor.requires_grad]  # their copies want no gradient either
    copies = (*(_Lower.apply(dtype, *trained) if trained else ()), *_copied(frozen, dtype))
    pairs = zip((*trained, *frozen), copies, strict=True)
    before = _ACTIVE.set(known | {id(pair[0]): pair for pair in pairs})
    try:
        yield
    finally:
        _ACTIVE.reset(before)


def lowered_weight(tensor: Tensor) -> Tensor:
    """The copy of a tensor that is in force, while autocast holds as it did then; else the tensor."""
    if torch.compiler.is_compiling():  # nothing is lowered there, and TorchDynamo reads no ContextVar
        return tensor
    active = _ACTIVE.get()
    copy = tensor if active is None else active.get(id(tensor), (tensor, tensor))[1]
    device = tensor.device.type
    if copy is tensor or (
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == copy.dtype
    ):
        return copy
    return tensor
