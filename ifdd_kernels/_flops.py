"""FLOPs of the ops for ``torch.utils.flop_counter.FlopCounterMode``."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from ifdd_kernels import _costs
from ifdd_kernels._operator import OPERATORS, Operator, forward_arguments
from ifdd_kernels._schema import NAMESPACE, Signature, by_name

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
    if COUNTER not in sys.modules:
        sys.meta_path.insert(0, _WhenImported())
        return
    for operator in OPERATORS.values():
        register(operator)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the counter as everybody does, and has the FLOPs registered behind its import."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != COUNTER or self not in sys.meta_path:
            return None
        place = sys.meta_path.index(self)
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(COUNTER)
        finally:
            sys.meta_path.insert(place, self)  # who looks for a module need not import it
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                register_all()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
