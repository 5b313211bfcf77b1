"""One entry per op: sample inputs, accuracy, and what it must move and compute.

Tests, benchmarks and documentation iterate over :data:`REGISTRY` instead of naming ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ifdd_kernels import _arguments, _costs, _samples, ops, reference
from ifdd_kernels._arguments import Maker as Maker
from ifdd_kernels._costs import Cost as Cost
from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._samples import Sample as Sample
from ifdd_kernels._schema import NAMESPACE, Signature, by_name, outputs_of
from ifdd_kernels.ops.lifting_steps import STEP_SCHEMA


@dataclass(frozen=True)
class Entry:
    """The facts about an op that are not in its code."""

    name: str
    #: The names of its arguments and results.
    signature: Signature
    #: The public function.
    function: Callable[..., Any]
    #: Sample arguments: odd and minimal sizes, strided inputs, an empty batch, short and long clips.
    samples: Callable[[Maker], Iterator[Sample]]
    #: Least bytes and FLOPs of the forward pass for the given arguments.
    cost: Callable[..., Cost]
    #: Error bound in ulps of the result's dtype, relative to the largest value; ``why`` derives it.
    ulps: float
    why: str

    @property
    def operator(self) -> Operator | None:
        """The registered operator; None for an op that decomposes into others."""
        return OPERATORS.get(self.name)

    @property
    def overload(self) -> torch._ops.OpOverload:
        """``torch.ops.ifdd.<name>``."""
        overload: torch._ops.OpOverload = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        return overload

    def differentiable(self, result: Any) -> list[Tensor]:
        """Of a call's result the tensors that gradients flow through."""
        results = outputs_of(result)
        return list(results) if self.operator is None else self.operator.differentiable(results)

    def public(self, *args: Any, backend: str = "auto") -> Any:
        """The public function, called with the arguments of the schema."""
        named = dict(zip(self.signature.arguments, args, strict=True))
        return self.function(**_arguments.public(self.name, named), backend=backend)

    def reference(self, *args: Any) -> Any:
        """The op's definition in plain PyTorch, differentiable by PyTorch."""
        return getattr(reference, self.name)(*args)


def backward_arguments(operator: Operator, args: tuple[Any, ...], seed: int = 1) -> tuple[Any, ...]:
    """Arguments of an op's backward for a sample: its own forward results and random gradients of them."""
    assert operator.wiring is not None
    results = outputs_of(operator.overload()(*args))
    generator = torch.Generator().manual_seed(seed)

    def gradient(result: Tensor) -> Tensor:
        values = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        return values.to(device=result.device, dtype=result.dtype)

    return operator.wiring.arguments(args, results, [gradient(result) for result in results])


def backward_cost(entry: Entry, args: tuple[Any, ...]) -> Cost:
    """Least bytes and FLOPs of an op's backward for the given arguments, which may be on the meta device.

    Bytes: what the backward op takes and returns, each moved once. FLOPs: two products for each of the
    forward pass; what a kernel computes again instead of keeping it is not needed, so it does not count.
    An op without a backward costs nothing; one that decomposes into others moves its arguments, the
    gradient of its result and the gradients of its arguments.
    """
    flops = 2 * entry.cost(*args).flops
    operator = entry.operator
    if operator is None:
        return Cost(2 * _costs.size(*(arg for arg in args if isinstance(arg, Tensor))), flops)
    if operator.backward is None or operator.wiring is None:
        return Cost(0, 0)
    meta = tuple(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in args)
    results = outputs_of(operator.fake(*meta))
    taken = operator.wiring.arguments(meta, results, results)
    moved = (*taken, *outputs_of(operator.backward.fake(*taken)))
    return Cost(_costs.size(*(t for t in moved if isinstance(t, Tensor))), flops)


def _entry(
    name: str,
    function: Callable[..., Any],
    samples: Callable[[Maker], Iterator[Sample]],
    cost: Callable[..., Cost],
    *,
    ulps: float,
    why: str,
) -> Entry:
    """An entry whose cost takes all arguments of the op, and reads each of its tensors once."""
    signature = OPERATORS[name].signature if name in OPERATORS else Signature.of(name, STEP_SCHEMA)
    beside = by_name(cost, signature, f"{name}: cost")

    def whole(*args: Any) -> Cost:
        written: Cost = beside(*args)
        return Cost(_costs.size(*(arg for arg in args if isinstance(arg, Tensor))), 0) + written

    return Entry(name, signature, function, samples, whole, ulps, why)


_ROUNDING = "arithmetic is in float32 or wider; "

REGISTRY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _entry(
            "add_layer_norm",
            ops.add_layer_norm,
            _samples.add_layer_norm,
            _costs.add_layer_norm,
            ulps=32,
            why=_ROUNDING + "the sum is rounded once, and the norm divides by the deviation of C of them",
        ),
        _entry(
            "augment_clips",
            ops.augment_clips,
            _samples.augment_clips,
            _costs.augment_clips,
            ulps=16,
            why=_ROUNDING + "two weighted means, then four steps that each multiply an error by 1.4 or so",
        ),
        _entry(
            "frame_tokens",
            ops.frame_tokens,
            _samples.frame_tokens,
            _costs.frame_tokens,
            ulps=16,
            why="a sum of C products in float32 errs by about sqrt(C) ulps of its terms, then one GELU",
        ),
        _entry(
            "frame_correlation",
            ops.frame_correlation,
            _samples.frame_correlation,
            _costs.frame_correlation,
            ulps=8,
            why="sums of D products in float32",
        ),
        _entry(
            "split_index",
            ops.split_index,
            _samples.split_index,
            _costs.split_index,
            ulps=32,
            why="tokens, correlation and two softmaxes in a row; tanh damps, T*T weights add up",
        ),
        _entry(
            "topk_split_index",
            ops.topk_split_index,
            _samples.topk_split_index,
            _costs.topk_split_index,
            ulps=0,
            why="integers: exact wherever two scores differ by more than their own rounding",
        ),
        _entry(
            "split_frames",
            ops.split_frames,
            _samples.split_frames,
            _costs.split_frames,
            ulps=48,
            why=_ROUNDING + "the position is a float32 number of up to T, so f carries T/2 ulps;"
            " the norm divides by the group's deviation",
        ),
        _entry(
            "static_dynamic_split",
            ops.static_dynamic_split,
            _samples.static_dynamic_split,
            _costs.static_dynamic_split,
            ulps=64,
            why="that of split_frames, at positions that carry the error of split_index",
        ),
        _entry(
            "lifting_attention",
            ops.lifting_attention,
            _samples.lifting_attention,
            _costs.lifting_attention,
            ulps=16,
            why=_ROUNDING + "an error of a score (its size times a rounding) is one of its probability",
        ),
        _entry(
            "lifting_update",
            ops.lifting_update,
            _samples.lifting_step,
            _costs.lifting_step,
            ulps=16,
            why="three matrix products in the given precision around lifting_attention",
        ),
        _entry(
            "lifting_predict",
            ops.lifting_predict,
            _samples.lifting_step,
            _costs.lifting_step,
            ulps=16,
            why="as lifting_update",
        ),
        _entry(
            "lifting_residual",
            ops.lifting_residual,
            _samples.lifting_residual,
            _costs.lifting_residual,
            ulps=16,
            why="two means that nearly cancel: the bound is relative to a result of 1/sqrt(T*C) the inputs'",
        ),
        _entry(
            "lifting_loss",
            ops.lifting_loss,
            _samples.lifting_loss,
            _costs.lifting_loss,
            ulps=32,
            why="one sum of non-negative terms in float32, of up to tens of thousands of cells",
        ),
        _entry(
            "pool_tokens",
            ops.pool_tokens,
            _samples.pool_tokens,
            _costs.pool_tokens,
            ulps=32,
            why=_ROUNDING + "27 products a sum, then a division by the deviation of d values",
        ),
        _entry(
            "max_pool_tokens",
            ops.max_pool_tokens,
            _samples.max_pool_tokens,
            _costs.max_pool_tokens,
            ulps=1,
            why="a result is one of the inputs; its gradient, one sum of a few, rounds once",
        ),
        _entry(
            "gelu_linear",
            ops.gelu_linear,
            _samples.linear,
            _costs.gelu_linear,
            ulps=16,
            why="the activation is rounded to the given dtype before one matrix product in it",
        ),
        _entry(
            "linear",
            ops.linear,
            _samples.linear,
            _costs.linear,
            ulps=16,
            why="one matrix product in the given dtype, or in float32 and rounded once",
        ),
        _entry(
            "pooled_attention",
            ops.pooled_attention,
            _samples.pooled_attention,
            _costs.pooled_attention,
            ulps=16,
            why=_ROUNDING + "an error of a score (its size times a rounding) is one of its probability",
        ),
    )
}
