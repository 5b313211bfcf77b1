"""The names in a schema, and the rules that follow from them.

An op's schema is the only list of its arguments and results. A rule about some of them is a function whose
parameters are called as they are (:func:`by_name`). The backward op's schema says how it is called
(:class:`Wiring`): ``grad_<result>`` is the gradient of a result, every other argument is an argument or a
result of the op itself, and its own results are called ``grad_<argument>``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "ifdd"


@dataclass(frozen=True)
class Signature:
    """The names of a schema's arguments and results."""

    arguments: tuple[str, ...]
    results: tuple[str, ...]
    #: The arguments that are tensors, or may be.
    tensors: frozenset[str]
    #: What each argument is: "Tensor", "Optional[Tensor]", "int", "float", "bool" or "List[int]".
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, name: str, schema: str) -> Signature:
        """Reads the schema ``"(Tensor x, ...) -> (Tensor out, ...)"`` of an op.

        Raises:
            ValueError: a result without a name, or with that of an argument.
        """
        parsed = torch._C.parse_schema(f"{NAMESPACE}::{name}{schema}")
        arguments = tuple(argument.name for argument in parsed.arguments)
        results = tuple(result.name for result in parsed.returns)
        if not all(results) or set(results) & set(arguments):
            raise ValueError(f"{name}: each result needs a name of its own in {parsed}")
        tensors = (a.name for a in parsed.arguments if "Tensor" in a.type.annotation_str)
        kinds = tuple(str(argument.type) for argument in parsed.arguments)
        return cls(arguments, results, frozenset(tensors), kinds)

    def order(self, named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Arguments in the schema's order; None for those that are not given.

        Raises:
            ValueError: a name that the schema does not have.
        """
        unknown = [name for name in named if name not in self.arguments]
        if unknown:
            raise ValueError(f"no argument is called {', '.join(unknown)}; there are {self.arguments}")
        return tuple(named.get(name) for name in self.arguments)


def by_name(function: Callable[..., Any], signature: Signature, rule: str) -> Callable[..., Any]:
    """``function`` as one of all arguments of a schema, of which it receives those its parameters name.

    Called with leading arguments only, it receives None for the others.

    Args:
        function: the function.
        signature: the schema's names.
        rule: what the function is, for the error.

    Raises:
        ValueError: a parameter that the schema does not have.
    """
    names = tuple(inspect.signature(function).parameters)
    unknown = [name for name in names if name not in signature.arguments]
    if unknown:
        raise ValueError(f"{rule}: the schema has no argument {', '.join(unknown)}")
    places = tuple(signature.arguments.index(name) for name in names)
    needed = 1 + max(places, default=-1)

    def named(*args: Any) -> Any:
        if len(args) < needed:
            args = (*args, *[None] * (needed - len(args)))
        # Limits of CUDA kernels are asked on every call.
        return function(*[args[place] for place in places])

    return named


@dataclass(frozen=True)
class Wiring:
    """From a call of an op to the call of its backward op, as places in what the schemas name."""

    #: The results of the op whose gradients the backward op takes.
    gradients: tuple[int, ...]
    #: Which of them it takes zeros for where there are none; ``Tensor?`` takes None.
    needed: tuple[bool, ...]
    #: Where the tensors that are kept for it lie in (*arguments, *results) of the op.
    kept: tuple[int, ...]
    #: Where its other values lie in the arguments of the op.
    constants: tuple[int, ...]
    #: Where each of its arguments lies in (*gradients, *kept, *constants).
    order: tuple[int, ...]
    #: The argument of the op that each of its results is the gradient of.
    inputs: tuple[int, ...]

    @classmethod
    def of(cls, op: str, forward: Signature, backward: Signature) -> Wiring:
        """Reads the names of an op's two schemas.

        Raises:
            ValueError: the backward op names something that the op does not have.
        """
        values = (*forward.arguments, *forward.results)
        outputs = {f"grad_{name}": place for place, name in enumerate(forward.results)}
        inputs = {f"grad_{name}": place for place, name in enumerate(forward.arguments)}
        unknown = [name for name in backward.arguments if name not in outputs and name not in values]
        unknown += [name for name in backward.results if name not in inputs]
        if unknown:
            raise ValueError(f"{op}: its backward op names {', '.join(unknown)}, which the op does not have")
        gradients = [name for name in backward.arguments if name in outputs]
        optional = {
            n for n, kind in zip(backward.arguments, backward.kinds, strict=True) if "Optional" in kind
        }
        others = [name for name in backward.arguments if name not in outputs]
        kept = [name for name in others if name in backward.tensors]
        constants = [name for name in others if name not in backward.tensors]
        order = [*gradients, *kept, *constants]
        return cls(
            gradients=tuple(outputs[name] for name in gradients),
            needed=tuple(name not in optional for name in gradients),
            kept=tuple(values.index(name) for name in kept),
            constants=tuple(values.index(name) for name in constants),
            order=tuple(order.index(name) for name in backward.arguments),
            inputs=tuple(inputs[name] for name in backward.results),
        )

    def arguments(
        self, args: Sequence[Any], results: Sequence[Any], gradients: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The backward op's arguments.

        Args:
            args: the op's arguments.
            results: its results.
            gradients: a gradient for each result; those it does not take are not looked at.
        """
        values = (*args, *results)
        found = [gradients[place] for place in self.gradients]
        found += [values[place] for place in (*self.kept, *self.constants)]
        return tuple(found[place] for place in self.order)


def outputs_of(result: Any) -> tuple[Any, ...]:
    """An op's result, which is one tensor or several, as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)
