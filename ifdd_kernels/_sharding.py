"""How DTensor may run the ops: each is independent in its batch, and the attentions in their heads.

A sharded batch stays sharded through forward and backward; gradients of parameters are partial sums then,
which DTensor adds where they are needed. So is the scalar of ``lifting_loss``, where it is a sum and no mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._schema import Signature
from ifdd_kernels._when_imported import when_imported

DTENSOR = "torch.distributed.tensor"

#: Words in the names of parameters: tensors without a batch, whose gradients are sums over it.
PARAMETERS = frozenset({"weight", "bias", "table"})
#: The axis of the batch where it is not the first.
BATCH = {("static_dynamic_split", "tokens"): 1}
#: The axis of the heads in arguments and results, where each head is computed by itself.
HEADS: dict[str, dict[str, int]] = {
    "lifting_attention": {"query": 2, "key": 2, "value": 2, "out": 2, "log_sum": 1},
    "pooled_attention": {"query": 2, "key": 2, "value": 2, "out": 2, "log_sum": 1},
}


def _placement(operator: Operator, name: str, axis: int | None, result: bool) -> Any:
    """Where an argument or result of an op or its backward op may be split; an axis of None is nowhere."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    if axis is None:
        return Replicate()
    plain = name.removeprefix("grad_")
    if not PARAMETERS.isdisjoint(plain.split("_")) or (operator.name, plain) == ("lifting_loss", "loss"):
        return Partial() if result else Replicate()
    return Shard(HEADS[operator.name][plain] if axis else BATCH.get((operator.name, plain), 0))


def _register(operator: Operator, overloads: Sequence[Any], signature: Signature) -> None:
    from torch.distributed.tensor.experimental import register_sharding

    def strategies(*args: Any) -> list[tuple[list[Any], list[Any]]]:
        named = dict(zip(signature.arguments, args, strict=False))
        axes: list[int | None] = [None]
        # Shards of several lengths have several weights in a mean. Of other ops `mean` is a tensor.
        if named.get("mean", False) is not True:
            axes.append(0)
        if operator.name in HEADS:
            spec = named["query"]
            if spec.tensor_meta.shape[2] % math.prod(spec.mesh.shape) == 0:
                axes.append(HEADS[operator.name]["query"])
        return [
            (
                [_placement(operator, name, axis, True) for name in signature.results],
                [
                    _placement(operator, name, axis, False)
                    if name in signature.tensors and value is not None
                    else None
                    for name, value in zip(signature.arguments, args, strict=False)
                ],
            )
            for axis in axes
        ]

    register_sharding(list(overloads))(strategies)


def _register_each() -> None:
    for operator in OPERATORS.values():
        backends = ("native", "reference", *operator.backends)
        _register(operator, [operator.overload(backend) for backend in backends], operator.signature)
        if operator.backward is not None:
            backward = Signature.of(f"{operator.name}_backward", operator.backward.schema)
            _register(operator, [operator.overload(b, backward=True) for b in backends], backward)


def register_all() -> None:
    """Registers the rules of all ops, when somebody imports DTensor."""
    when_imported(DTENSOR, _register_each)
