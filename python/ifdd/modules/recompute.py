"""Results that backward computes again instead of keeping them, from the tensors that forward used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifdd.modules.children import PLAIN_TENSORS, weights, without_autocast
from ifdd.modules.lowered import lowered_dtype


class _Kept(NamedTuple):
    """A tensor of the forward pass, as autograd would have saved it."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        return cls(tensor.detach(), tensor._version)

    def get(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: it was changed in place since, in PyTorch's own words.
        """
        tensor, version = self
        if tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace"
                f" operation: [{tensor.type()} {list(tensor.shape)}] is at version {tensor._version};"
                f" expected version {version} instead."
            )
        return tensor


def _hooks_available() -> bool:
    """Whether saved tensors may have hooks: `torch.func` has none, and anyone may disable them."""
    return not torch._C._are_functorch_transforms_active() and (
        torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    )


def norm_again(norm: nn.Module, tokens: Tensor, normed: Tensor) -> AbstractContextManager[object]:
    """While active, autograd does not store `normed`; backward recomputes it from `tokens`.

    The tokens are kept by the norm anyway. A copy of `normed`, as autocast makes it, is kept as ever, and so
    is `normed` itself where backward could not know how it was made (a norm other than a plain `LayerNorm`, a
    tensor changed in place since), where hooks on saved tensors are not to be had, and where somebody else's
    are in force: checkpoints and offloading see every tensor. Compilers decide for themselves what is kept.

    Backward takes the tensors of the forward pass, not what the module holds by then, and raises PyTorch's
    error if they were changed in place.
    """
    if (
        torch.compiler.is_compiling()
        or not torch.is_grad_enabled()
        or not _hooks_available()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    ):
        return nullcontext()
    found = weights(norm, nn.LayerNorm)
    if found is None:
        return nullcontext()
    if lowered_dtype(tokens) is not None and found[0] is not None and found[0].dtype != normed.dtype:
        return nullcontext()  # the norm ran with its own weights, not with the copies that are in force
    used = [tensor for tensor in (tokens, *found) if tensor is not None]
    if any(tensor.is_inference() for tensor in used):
        return nullcontext()
    kept = [_Kept.of(tensor) for tensor in used]
    storage, size, dtype, version = (
        normed.untyped_storage()._cdata,
        normed.numel(),
        normed.dtype,
        normed._version,
    )
    shape: Any = norm.normalized_shape
    eps: Any = norm.eps

    def pack(saved: Tensor) -> Tensor | torch.Size:
        whole = saved.numel() == size and saved.dtype == dtype and saved.is_contiguous()
        same = whole and saved.untyped_storage()._cdata == storage and saved._version == version
        return saved.shape if same else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        source, weight = kept[0].get(), kept[1].get()
        bias = None if len(kept) == 2 else kept[2].get()
        # The norm may have run in autocast's dtype.
        source, weight = source.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.no_grad(), without_autocast(source):
            again = F.layer_norm(source, shape, weight, bias, eps)
        return again.view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def checkpointed(block: nn.Module, tokens: Tensor) -> Any:
    """block(tokens), of which backward computes the inner results again, with the parameters of this call.

    `torch.utils.checkpoint` alone would take what the block holds by then: other parameters after
    `torch.func.functional_call`, other values after a step of the optimiser. Here the parameters of the
    forward pass come back for the recomputation, and changed ones raise PyTorch's error. Parameters that are
    sharded or otherwise no plain tensors are left to those who manage them.

    Where hooks on saved tensors are not to be had (`torch.func`, or disabled) everything is kept.
    """
    if torch.compiler.is_compiling():
        return checkpoint(block, tokens, use_reentrant=False)
    if not _hooks_available():
        return block(tokens)
    kept: list[tuple[nn.Module, str, Tensor, int]] = [
        (module, name, parameter, parameter._version)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if type(parameter) in PLAIN_TENSORS and parameter is not None and not parameter.is_inference()
    ]
    again = False

    def run(tokens: Tensor) -> Any:
        nonlocal again
        with _brought_back(kept) if again else nullcontext():
            again = True
            return block(tokens)

    return checkpoint(run, tokens, use_reentrant=False)


@contextmanager
def _brought_back(kept: list[tuple[nn.Module, str, Tensor, int]]) -> Iterator[None]:
    """Inside, the modules hold these parameters, where they hold others of the same kind now."""
    changed: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, parameter, version in kept:
            _Kept(parameter, version).get()
            current = module._parameters.get(name)
            # A parameter of another shape is a shard or its whole: its manager's business.
            if (
                current is not None
                and current is not parameter
                and type(current) in PLAIN_TENSORS
                and current.shape == parameter.shape
            ):
                changed.append((module, name, current))
                module._parameters[name] = parameter  # type: ignore[assignment]
        yield
    finally:
        for module, name, current in changed:
            module._parameters[name] = current
