"""An object of somebody's class made one of a subclass, and back.

Only the class of a module changes. So its parameters are the same objects under the same names, hooks stay
where they are, and whoever holds the module (an optimizer, a hook's handle, an outer network) holds it still.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ifdd.modules.children import PLAIN_TENSORS
from ifdd_kernels.backends import LIBRARY_OPS

_BACKEND = "_ifdd_backend"


class Accelerated(nn.Module):
    """Mixed into a class of an MViT: `forward` may take the kernels, and is otherwise the class' own."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if not is_just_accelerated(self):  # somebody's subclass, which this cannot make again
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        # The class was made at run time: pickle finds it by what it was made of.
        found: Any = super().__reduce_ex__(2)
        return (_empty, type(self).__bases__, *found[2:])


def _empty(mixin: type[Accelerated], original: type[nn.Module]) -> nn.Module:
    made = accelerated_class(mixin, original)
    return made.__new__(made)


def accelerated_class(mixin: type[Accelerated], original: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `original` whose forward is that of `mixin`; the same one on every call."""
    return _class((mixin, original))


@functools.cache
def _class(bases: tuple[Any, ...]) -> type[nn.Module]:
    original = bases[1]
    names = {"__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Accelerated{original.__name__}", bases, names)


def is_accelerated(module: nn.Module) -> bool:
    """Whether a module was swapped."""
    return isinstance(module, Accelerated)


def is_just_accelerated(module: nn.Module) -> bool:
    """Whether its class is the one that :func:`swap` gave it.

    A parametrisation of the module itself and FSDP2 make subclasses of that one.
    """
    bases = type(module).__bases__
    return len(bases) == 2 and issubclass(bases[0], Accelerated) and _class(bases) is type(module)


def place_of(module: nn.Module) -> tuple[str, str]:
    """Module and name of its class, which is not imported to be compared with."""
    return type(module).__module__, type(module).__qualname__


def why_another(module: nn.Module, place: tuple[str, str]) -> str:
    """Why a module does not run the forward of the class at that place, in words; empty where it does."""
    if place_of(module) != place:
        return f"is a {'.'.join(place_of(module))}, not {place[0].partition('.')[0]}'s {place[1]}"
    return "has a forward of its own" if "forward" in module.__dict__ else ""


def swap(module: nn.Module, mixin: type[Accelerated], backend: str) -> None:
    """Makes `module` run the forward of `mixin`."""
    module.__class__ = accelerated_class(mixin, type(module))
    setattr(module, _BACKEND, backend)


def restore(module: nn.Module) -> None:
    """Undoes :func:`swap`, of a module for which :func:`is_just_accelerated` holds."""
    if is_just_accelerated(module):
        module.__class__ = type(module).__bases__[1]
        delattr(module, _BACKEND)


def backend_of(module: nn.Module, op: str) -> str:
    """The backend of an op in a swapped module.

    Ops that are a library's own product or pooling on GPUs have no others there to choose from, and fused
    attention is a backend of attention alone.
    """
    backend: str = getattr(module, _BACKEND)
    if backend == "sdpa":
        return backend if op == "pooled_attention" else "auto"
    return backend if backend == "reference" or op not in LIBRARY_OPS else "auto"


def takes(x: Any) -> bool:
    """Whether the kernels take x as the class' own forward would.

    Not what stands for a tensor (proxies of a tracer, sharded or quantised tensors), and not where
    derivatives are taken that the ops do not have: `torch.func` and forward-mode differentiation.
    """
    if type(x) not in PLAIN_TENSORS or not x.is_floating_point():
        return False
    if torch.compiler.is_compiling():
        return True
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors that a kernel may read, or nothing."""
    return all(tensor is None or type(tensor) in PLAIN_TENSORS for tensor in tensors)
