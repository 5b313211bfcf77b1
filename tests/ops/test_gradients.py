"""Outputs that nothing was made of: no zeros are filled for them, unless a backward op wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ifdd_kernels._operator import OPERATORS, Operator
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker
from ops.cases import with_gradients

FILLS = {"zeros", "zeros_like", "new_zeros", "zero_", "full", "full_like", "fill_"}
DIFFERENTIABLE = [name for name, operator in OPERATORS.items() if operator.backward]


class Calls(TorchDispatchMode):
    """Counts calls of ops by name, fills with zeros under ``"zeros"``."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in FILLS and isinstance(result, Tensor) and not result.any():
            name = "zeros"
        self.count[name] = self.count.get(name, 0) + 1
        return result


class Cut(torch.autograd.Function):
    """The identity, whose backward says that there is no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None


def _ways(operator: Operator) -> list[Callable[..., Any]]:
    """By the dispatcher, and from Python as the public functions come."""
    return [operator.overload(backend) for backend in ("native", "reference")] + [
        partial(operator, backend) for backend in ("native", "reference")
    ]


def _asked(operator: Operator) -> tuple[int, ...]:
    """Places of the outputs whose gradients the backward op takes."""
    assert operator.wiring is not None
    return operator.wiring.gradients


def _sample(name: str) -> tuple[Any, ...]:
    return with_gradients(next(s for s in REGISTRY[name].samples(Maker(torch.float64)) if s.args[0].numel()))


def _needed(operator: Operator) -> set[int]:
    """The results whose gradients the backward op takes zeros for; for the others it takes None."""
    wiring = operator.wiring
    assert wiring is not None
    return {place for place, needed in zip(wiring.gradients, wiring.needed, strict=True) if needed}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_zeros_are_made_for_outputs_without_a_gradient_and_no_others(name: str) -> None:
    operator = OPERATORS[name]
    for way in _ways(operator):
        args = _sample(name)
        inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        outputs = outputs_of(way(*args))
        asked = _asked(operator)
        given = {place: torch.randn_like(outputs[place]) for place in asked}
        for kept in [asked, *([place] for place in asked)]:
            own = [given[p] for p in kept]
            with Calls() as calls:
                found = torch.autograd.grad(
                    [outputs[p] for p in kept], inputs, own, retain_graph=True, allow_unused=True
                )
            called = [c for c in calls.count if c.startswith(f"{name}_backward")]
            assert [calls.count[c] for c in called] == [1]
            zeros = {p: given[p] if p in kept else torch.zeros_like(given[p]) for p in asked}
            inside = _inside(operator, called[0], args, outputs, zeros)
            assert calls.count.get("zeros", 0) - inside == len(_needed(operator) - set(kept))
            wanted = torch.autograd.grad(
                [outputs[p] for p in asked],
                inputs,
                list(zeros.values()),
                retain_graph=True,
                allow_unused=True,
            )
            for one, other in zip(found, wanted, strict=True):
                assert one is other or torch.equal(one, other)


def _inside(
    operator: Operator,
    backward: str,
    args: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    grads: Mapping[int, Tensor],
) -> int:
    """Zeros that the backward op itself makes: the reference is plain PyTorch."""
    assert operator.wiring is not None
    given = [grads.get(place) for place in range(len(outputs))]
    arguments = [
        a.detach() if isinstance(a, Tensor) else a for a in operator.wiring.arguments(args, outputs, given)
    ]
    with Calls() as calls:
        getattr(torch.ops.ifdd, backward)(*arguments)
    return calls.count.get("zeros", 0)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_without_any_gradient_no_backward_runs(name: str) -> None:
    for way in _ways(OPERATORS[name]):
        args = _sample(name)
        outputs = [out for out in outputs_of(way(*args)) if out.requires_grad]
        with Calls() as calls:
            sum(Cut.apply(out).sum() for out in outputs).backward()
        assert not [called for called in calls.count if called.startswith(name)]
        assert all(a.grad is None for a in args if isinstance(a, Tensor) and a.requires_grad)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck_of_each_output_alone(name: str) -> None:
    args = _sample(name)
    operator = OPERATORS[name]
    for place in _asked(operator):
        for way in _ways(operator)[::2]:
            assert torch.autograd.gradcheck(
                lambda *given, way=way, place=place: outputs_of(way(*given))[place], args, fast_mode=True
            )


def _zeros_of_a_step() -> int:
    from ifdd import IFDD, IFDDConfig
    from ifdd.losses import IFDDLoss

    config = IFDDConfig(
        backbone="mvit_nano", embed_dim=8, depths=[1, 1, 1, 1], image_size=32, clip_frames=8, split_pool=2
    )
    torch.manual_seed(0)
    model = IFDD(config)
    loss = IFDDLoss()(model(torch.rand(2, 3, 8, 32, 32)), torch.tensor([0, 1])).total
    with Calls() as calls:
        loss.backward()
    return calls.count.get("zeros", 0)


def test_a_training_step_fills_no_zeros_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block has statistics of three norms and of a softmax, which no gradient comes back to."""
    now = _zeros_of_a_step()
    monkeypatch.setattr(
        torch.autograd.function.FunctionCtx, "set_materialize_grads", lambda self, value: None
    )
    before = _zeros_of_a_step()
    print("zeros a step:", before, "->", now)
    assert now <= 6
    assert before >= now + 20
