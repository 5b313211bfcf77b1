"""A norm whose result backward computes again instead of keeping it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn


def norm_again(
    norm: nn.LayerNorm, tokens: torch.Tensor, normed: torch.Tensor
) -> AbstractContextManager[object]:
    """Inside, an op that saves `normed`, which is norm(tokens), for backward keeps nothing in its place.

    The tokens are kept by the norm anyway. A copy of `normed`, as autocast makes it, is kept as ever.
    Compilers decide for themselves what is kept, and `torch.func` has no hooks on it: they see no difference.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return nullcontext()
    storage, size, dtype, source = (
        normed.untyped_storage()._cdata,
        normed.numel(),
        normed.dtype,
        tokens.detach(),
    )

    def pack(saved: torch.Tensor) -> torch.Tensor | torch.Size:
        whole = saved.numel() == size and saved.dtype == dtype and saved.is_contiguous()
        return saved.shape if whole and saved.untyped_storage()._cdata == storage else saved

    def unpack(packed: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        with torch.no_grad():
            again = F.layer_norm(source, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return again.view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
