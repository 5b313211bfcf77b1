"""Refuses arguments of a wrong type by name, before PyTorch's dispatcher sees them.

The dispatcher converts what it can: a learned tensor to a float that has no gradient, True to 1. Of an
integer of more than 64 bits it names neither op nor argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ifdd_kernels import _check
from ifdd_kernels._schema import NAMESPACE, Signature

#: Numbers nearer to the end of 64 bits are rare enough for the whole check.
_MANY = 2**62


class ArgumentTypes:
    """The types of an op's arguments; quick where they are as expected, which is on every call."""

    def __init__(self, op: str, signature: Signature) -> None:
        places = list(enumerate(zip(signature.arguments, signature.kinds, strict=True)))
        self.op = op
        self.signature = signature
        self._tensors = [(p, name, kind != "Tensor") for p, (name, kind) in places if "Tensor" in kind]
        self._numbers = [
            (p, name, kind, _check.EXACT[kind]) for p, (name, kind) in places if kind in _check.EXACT
        ]
        self._lists = [(p, name) for p, (name, kind) in places if kind == "List[int]"]

    def check_numbers(self, args: Sequence[Any]) -> None:
        """Refuses what is not a number where one is expected; the last arguments may be missing."""
        count = len(args)
        for place, name, kind, exact in self._numbers:
            if place < count:
                value = args[place]
                if type(value) not in exact or not -_MANY < value < _MANY:
                    _check.number(self.op, name, kind, value)
        for place, name in self._lists:
            if place < count:
                for item in args[place] if type(args[place]) is list else (None,):
                    if type(item) is not int or not -_MANY < item < _MANY:
                        _check.number(self.op, name, "List[int]", args[place])

    def check(self, args: Sequence[Any]) -> None:
        """Refuses what is not a dense tensor, too; all arguments."""
        for place, name, optional in self._tensors:
            value = args[place]
            if not (optional and value is None):
                _check.tensor(self.op, name, value)
        self.check_numbers(args)


class Guard:
    """The call of a registered op with the refusals before it."""

    def __init__(self, types: ArgumentTypes, call: Callable[..., Any]) -> None:
        self.types = types
        #: Without the refusals.
        self.call = call
        # What PyTorch and TorchScript ask of the function in whose place it is.
        self.__name__ = getattr(call, "__name__", types.op)
        self.__module__ = call.__module__

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        types = self.types
        if kwargs:
            given = self._named(args, kwargs)
            for name, kind in zip(types.signature.arguments, types.signature.kinds, strict=True):
                if name in given and "Tensor" not in kind:
                    _check.number(types.op, name, kind, given[name])
        else:
            types.check_numbers(args)
        try:
            if torch._C._get_tracing_state() is not None:
                # Recorded by torch.jit.trace is the op, and not the Python function of its gradients.
                with torch._C._AutoDispatchBelowAutograd():
                    return self.call(*args, **kwargs)
            return self.call(*args, **kwargs)
        except RuntimeError:
            # PyTorch takes None for a tensor, and of tensors without strides it says nothing but its own key.
            given = self._named(args, kwargs)
            if all(name in given for name in types.signature.arguments):
                types.check([given[name] for name in types.signature.arguments])
            raise

    def _named(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self.types.signature.arguments, args, strict=False)), **kwargs}


class _Packet(torch._ops.OpOverloadPacket):
    """``torch.ops.ifdd.<name>``, with the same refusals."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.default(*args, **kwargs)


def guard(name: str, schema: str) -> None:
    """Puts the refusals before the calls of ``torch.ops.ifdd.<name>`` and of its overload."""
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    overload = packet.default
    # Compilers ask for the very type of an overload, so it is the function in it that is replaced.
    overload._op = Guard(ArgumentTypes(name, Signature.of(name, schema)), overload._op)
    packet.__class__ = _Packet


def guard_of(overload: torch._ops.OpOverload) -> Guard:
    """The guard that :func:`guard` has put before an op."""
    found: Any = overload._op
    assert isinstance(found, Guard)
    return found
