"""FLOPs of the ops for ``torch.utils.flop_counter.FlopCounterMode``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ifdd_kernels import _costs
from ifdd_kernels._operator import OPERATORS, Operator, forward_arguments
from ifdd_kernels._schema import NAMESPACE, Signature, by_name
from ifdd_kernels._when_imported import when_imported

COUNTER = "torch.utils.flop_counter"


def _formula(schema: str, count: Callable[..., int]) -> Callable[..., int]:
    """A count of an op's arguments as FlopCounterMode calls it."""
    signature = Signature.of("counted", schema)

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        named = {**dict(zip(signature.arguments, args, strict=False)), **kwargs}
        return count(*signature.order(named))

    return formula


def register(operator: Operator) -> None:
    """Registers the FLOPs of an op and its backward op on every backend.

    Forward: those of :mod:`ifdd_kernels._costs`. Backward: twice that, whether or not a backend computes some
    of the forward pass again.
    """
    cost = by_name(getattr(_costs, operator.name), operator.signature, f"{operator.name}: cost")
    backends = ("native", "reference", *operator.backends)

    def forward(*args: Any) -> int:
        flops: int = cost(*args).flops
        return flops

    _register([operator.overload(backend) for backend in backends], _formula(operator.schema, forward))
    if operator.backward is None:
        return
    complete = forward_arguments(operator)

    def backward(*args: Any) -> int:
        return 2 * forward(*complete(*args))

    overloads = [operator.overload(backend, backward=True) for backend in backends]
    _register(overloads, _formula(operator.backward.schema, backward))


def _register(overloads: list[torch._ops.OpOverload], formula: Callable[..., int]) -> None:
    from torch.utils.flop_counter import register_flop_formula

    names = [overload._schema.name.removeprefix(f"{NAMESPACE}::") for overload in overloads]
    packets = [getattr(getattr(torch.ops, NAMESPACE), name) for name in names]
    register_flop_formula(packets, get_raw=True)(formula)


def register_all() -> None:
    """Registers the FLOPs of all ops; the lifting steps are counted as what they decompose into.

    At once where PyTorch's counter is loaded, else when somebody imports it: it brings Triton, which costs
    every import that counts nothing a tenth of a second.
    """
    when_imported(COUNTER, _register_each)


def _register_each() -> None:
    for operator in OPERATORS.values():
        register(operator)
