"""`accelerate`: finds the blocks of an MViT in a model and swaps their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ifdd.acceleration import pytorchvideo_mvit, slowfast_mvit, torchvision_mvit
from ifdd.acceleration.classes import Accelerated, is_accelerated, is_just_accelerated, swap
from ifdd.acceleration.probe import Trials
from ifdd.acceleration.report import Report
from ifdd_kernels.backends import BACKENDS

#: What each part of a block becomes and why parts are left, by their names in it; the block itself is "". The
#: trials are those of one call of `accelerate`, for plans that make some.
Plan = Callable[[Any, Trials], tuple[dict[str, type[Accelerated]], dict[str, str]]]

#: By module and name of a block's class: nothing is imported to find out that a model has none.
BLOCKS: dict[tuple[str, str], Plan] = {
    ("torchvision.models.video.mvit", "MultiscaleBlock"): torchvision_mvit.plan,
    ("pytorchvideo.layers.attention", "MultiScaleBlock"): pytorchvideo_mvit.plan,
    ("slowfast.models.attention", "MultiScaleBlock"): slowfast_mvit.plan,
}


def accelerate(model: nn.Module, *, backend: str = "auto") -> Report:
    """Makes the blocks of an existing MViT run on the kernels of `ifdd_kernels`, in place.

    The blocks of torchvision's `mvit_v1_b`, `mvit_v2_s` and of every other model made of its class `MViT`,
    those of pytorchvideo 0.1.5 and those of SlowFast (`slowfast.models.attention`, MViT v1 and v2) compute
    what they computed, from and to the same tensors: parameters and their names, hooks, modes, random draws
    and the object of every module stay. Only the classes of the modules that hold a block's attention, its
    MLP and its max-pooled shortcut (in pytorchvideo and SlowFast the block itself) change, to subclasses of
    what they were.

    What the kernels cannot take exactly is left, with the reason. SlowFast is used from checkouts, which
    people change: a module of each kind and settings is first tried on random numbers, on a copy, and those
    that compute something else are left. What changes later (a hook, an adapter, a replaced layer, dropout)
    is noticed on every call, and the class' own forward runs for it. So it does under `torch.func`, in
    forward-mode differentiation and when `torch.fx` traces.

    Args:
        model: any module: an MViT, a part of one, or a network that has one inside.
        backend: of the ops, see :mod:`ifdd_kernels.backends`; where no such backend is meant for an op, as
            products of matrices on GPUs, or attention that is PyTorch's own, it chooses for itself.

    Returns:
        What was replaced and what was left and why; its `undo` gives the classes back.

    Raises:
        TypeError: a model that is not an `nn.Module`.
        ValueError: an unknown backend.

    Second derivatives are refused in backward, as by all ops here. `torch.jit.script` takes no module whose
    class was made at run time: undo first. Pickles need this package where they are loaded.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    if backend not in BACKENDS:
        raise ValueError(f"accelerate: unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    replaced: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    trials: Trials = {}
    for name, block in list(model.named_modules()):
        plan, reason = _plan_of(block)
        if reason:
            left[name] = reason
        if plan is None:
            continue
        parts = {"": block, **dict(block.named_children())}
        names = {part: ".".join(filter(None, (name, part))) for part in parts}
        become, why = plan(block, trials)
        for part, module in parts.items():
            if is_accelerated(module):  # by an earlier call, or as a part of another block that shares it
                become.pop(part, None)
                why[part] = "is accelerated already"
        for part, mixin in become.items():
            swap(parts[part], mixin, backend)
            replaced[names[part]] = parts[part]
        left.update({names[part]: reason for part, reason in why.items()})
    return Report(replaced, left)


def _plan_of(block: nn.Module) -> tuple[Plan | None, str]:
    """How to plan a block, None for all other modules; and why a block that looks like one is left."""
    own = type(block).__bases__[1] if is_just_accelerated(block) else type(block)
    kinds = [(kind.__module__, kind.__qualname__) for kind in own.__mro__]
    found = next((place for place, kind in enumerate(kinds) if kind in BLOCKS), None)
    if found is None:
        return None, ""
    if found > 0:
        return None, f"is a {kinds[0][1]}, a subclass of {kinds[found][1]} that may compute anything"
    if "forward" in block.__dict__:
        return None, "has a forward of its own"
    return BLOCKS[kinds[0]], ""
