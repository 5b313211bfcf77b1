"""Children whose weights a fused op reads: when it may, and what is called otherwise.

A fused op takes the weights of a child instead of calling it. Both come to the same only where the child is
exactly the layer that the op computes: an adapter (LoRA), a hook, a parametrisation, pruning, quantised or
sharded weights and offloading all live in the call. docs/modules.md lists the children concerned.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _hooks
from torch.utils.module_tracker import ModuleTracker

from ifdd.modules import lowered
from ifdd.modules.convolution import Conv2d, Conv3d
from ifdd.modules.drop_path import DropPath, drawn
from ifdd_kernels import add_layer_norm, linear
from ifdd_kernels._operator import AUTOCAST_DEVICES
from ifdd_kernels.backends import select

PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, nn.Buffer, FakeTensor, FunctionalTensor})
"""Types that fused ops take. The last two stand for plain tensors while a program is traced."""

Weights = tuple[Tensor, Tensor | None]


def is_untouched(module: nn.Module) -> bool:
    """Whether calling the module runs the forward of its class and nothing else.

    Hooks may come and go at any time, so this is asked on every call.
    """
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or "forward" in module.__dict__
    ):
        return False
    watched = (
        _hooks._global_forward_hooks
        or _hooks._global_forward_pre_hooks
        or _hooks._global_backward_hooks
        or _hooks._global_backward_pre_hooks
    )
    return not watched or _names_only()


def weights(module: nn.Module | None, kind: type[nn.Module]) -> Weights | None:
    """Weight and bias of a module that may be read; None where it has to be called.

    Args:
        module: a child; its class must be `kind` itself: a subclass may compute anything.
        kind: a layer with `weight` and `bias`.
    """
    if type(module) is not kind or not is_untouched(module):
        return None
    weight, bias = module.weight, module.bias
    if type(weight) not in PLAIN_TENSORS or not (bias is None or type(bias) in PLAIN_TENSORS):
        return None
    wide: Weights = (weight, bias)  # type: ignore[assignment]
    return lowered.lowered_weight(wide[0]), None if wide[1] is None else lowered.lowered_weight(wide[1])


def weight_and_bias(module: nn.Module | None, kind: type[nn.Module]) -> tuple[Tensor, Tensor] | None:
    """As :func:`weights`, of a module that has both."""
    found = weights(module, kind)
    return None if found is None or found[1] is None else (found[0], found[1])


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), by `ifdd_kernels.linear` (fast in 16 bits on a CPU) where the layer is a plain `Linear`."""
    found = weights(layer, nn.Linear)
    out: Tensor = layer(x) if found is None else linear(x, *found)
    return out


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """norm(x); where layers run in autocast's bfloat16 on a GPU and x has it, so has the result.

    Autocast would widen x to float32, and the layer behind the norm would narrow the result again: three more
    passes. PyTorch's kernel sums in float32 either way; it wants weights of x's dtype, so that they are
    rounded as those of the layers are.
    """
    found = weight_and_bias(norm, nn.LayerNorm)
    if found is None or not x.dtype == found[0].dtype == lowered.lowered_dtype(x):
        out: Tensor = norm(x)
        return out
    with without_autocast(x):
        return F.layer_norm(x, norm.normalized_shape, *found, norm.eps)  # type: ignore[arg-type]


def add_branch(tokens: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """tokens + drop_path(branch), by `DropPath.added` where the module may be read."""
    if type(drop_path) is DropPath and is_untouched(drop_path):
        return drop_path.added(tokens, branch)
    added: Tensor = tokens + drop_path(branch)
    return added


def add_and_norm(
    tokens: Tensor, branch: Tensor, drop_path: nn.Module, norm: nn.Module, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """tokens + drop_path(branch), and norm of it; by `add_layer_norm` on a GPU where both may be read.

    On a CPU PyTorch's sum and norm are as fast. Under autocast the norm has the tokens' dtype, as with
    :func:`apply_norm`.

    Args:
        tokens: (B, ..., C).
        branch: of the same shape.
        drop_path: drops the branch of some samples.
        norm: over C.
        kept: (B,), what was drawn for `drop_path` already; for `add_layer_norm`.
    """
    found = weight_and_bias(norm, nn.LayerNorm)
    if (
        found is None
        or type(drop_path) is not DropPath
        or not is_untouched(drop_path)
        or not lowered.eager_on_gpu(tokens)
        or not tokens.dtype == branch.dtype == found[0].dtype == found[1].dtype
        or lowered.lowered_dtype(tokens) not in (None, tokens.dtype)
        or tokens.shape != branch.shape
        or norm.normalized_shape != tokens.shape[-1:]
        # The definition takes more launches and memory than PyTorch's sum and norm.
        or select("add_layer_norm", "auto", tokens, branch, *found, None, 1.0, norm.eps) == "reference"
    ):
        tokens = add_branch(tokens, branch, drop_path)
        return tokens, apply_norm(norm, tokens)
    if kept is None:
        kept = drawn([drop_path], tokens)[0]
    keep = 1.0 - drop_path.rate
    return add_layer_norm(tokens, branch, *found, kept=kept, keep=keep, eps=norm.eps)  # type: ignore[arg-type]


def lowered_layers(
    x: Tensor, *layers: nn.Module | None, alone: Sequence[Tensor] = ()
) -> AbstractContextManager[None]:
    """Inside, the weights of these layers that may be read are cast together where autocast would cast each.

    Args:
        x: says which autocast.
        layers: `Linear`s, this package's convolutions, and `LayerNorm`s for `apply_norm`.
        alone: parameters of no layer, to be read by `lowered_weight`.
    """
    dtype = lowered.lowered_dtype(x)
    if dtype is None:
        return nullcontext()
    # Norms in float16 stay as autocast has them: the gradients of their weights are sums over all rows, times
    # the loss's scale, beyond its range.
    kinds = (nn.Linear, Conv2d, Conv3d, *([nn.LayerNorm] if dtype == torch.bfloat16 else []))
    found = (weights(layer, kind) for layer in layers for kind in kinds)
    pairs = (pair for pair in found if pair is not None)
    tensors = [tensor for pair in pairs for tensor in pair if tensor is not None]
    return lowered.lowered([*tensors, *(t for t in alone if type(t) in PLAIN_TENSORS)], dtype)


def call_unrounded(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) in the dtype of the layer's parameters, under autocast too; the result in x's dtype."""
    own = next((p.dtype for p in layer.parameters() if p.is_floating_point()), x.dtype)
    with without_autocast(x):
        out: Tensor = layer(x.to(own))
    return out.to(x.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x; PyTorch refuses to be asked about some devices, such as meta."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if device in AUTOCAST_DEVICES else nullcontext()


def _names_only() -> bool:
    """Whether the hooks on all modules are those that note which one runs, as PyTorch's FLOP counter does.

    It should count what runs without it.
    """
    every = (
        _hooks._global_forward_hooks,
        _hooks._global_forward_pre_hooks,
        _hooks._global_backward_hooks,
        _hooks._global_backward_pre_hooks,
    )
    owners = (getattr(hook, "__self__", None) for hooks in every for hook in hooks.values())
    return all(isinstance(owner, ModuleTracker) for owner in owners)
