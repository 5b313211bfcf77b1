"""Ops are described by name: rules, backward ops and kernels call things as their schema does."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import _operator, reference
from ifdd_kernels._operator import OPERATORS, Backward, register
from ifdd_kernels._schema import Signature, Wiring, by_name, outputs_of
from ifdd_kernels.registry import REGISTRY, Maker

SCHEMA = "(Tensor x, Tensor? weight, int[3] grid, float eps) -> (Tensor out, Tensor stats)"
BACKWARD = "(Tensor stats, Tensor grad_out, float eps, Tensor x) -> (Tensor grad_weight, Tensor grad_x)"
FORWARD = Signature.of("scaled", SCHEMA)


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_definitions_and_kernels_have_the_arguments_of_the_schema(name: str) -> None:
    operator = OPERATORS[name]
    assert parameters(getattr(reference, name)) == operator.signature.arguments
    modules = []
    if "triton" in operator.backends and importlib.util.find_spec("triton") is not None:
        modules.append(importlib.import_module(f"ifdd_kernels.triton.{name}"))
    for module in modules:
        assert parameters(module.forward) == operator.signature.arguments
    if operator.backward is not None:
        taken = Signature.of(name, operator.backward.schema).arguments
        assert parameters(operator.backward.reference) == taken
        for module in modules:
            assert parameters(module.backward) == taken


def test_names_of_a_schema() -> None:
    assert FORWARD.arguments == ("x", "weight", "grid", "eps")
    assert FORWARD.results == ("out", "stats")
    assert FORWARD.tensors == {"x", "weight"}
    assert FORWARD.order({"eps": 0.5, "x": 1}) == (1, None, None, 0.5)
    with pytest.raises(ValueError, match="no argument is called scale"):
        FORWARD.order({"scale": 1})
    for wrong in ("(Tensor x) -> Tensor", "(Tensor x) -> (Tensor x, Tensor y)"):
        with pytest.raises(ValueError, match="needs a name of its own"):
            Signature.of("scaled", wrong)


def test_a_rule_receives_what_it_names() -> None:
    rule = by_name(lambda eps, x: (eps, x), FORWARD, "some rule")
    assert rule("x", "weight", "grid", "eps") == ("eps", "x")
    assert rule("x", "weight") == (None, "x")
    with pytest.raises(ValueError, match="some rule: the schema has no argument scale"):
        by_name(lambda x, scale: None, FORWARD, "some rule")


def test_a_backward_op_is_wired_by_its_names() -> None:
    wiring = Wiring.of("scaled", FORWARD, Signature.of("scaled", BACKWARD))
    assert wiring.gradients == (0,)
    assert wiring.inputs == (1, 0)
    assert wiring.arguments("xwge", "os", "gh") == ("s", "g", "e", "x")
    for wrong, named in (
        ("(Tensor grad_weight, Tensor x) -> Tensor grad_x", "grad_weight"),  # no result is called weight
        ("(Tensor grad_out, Tensor bias) -> Tensor grad_x", "bias"),
        ("(Tensor grad_out, Tensor x) -> Tensor grad_stats", "grad_stats"),  # nor an argument stats
        ("(Tensor grad_out, Tensor x) -> Tensor dx", "dx"),
    ):
        with pytest.raises(ValueError, match=f"scaled: its backward op names {named}, which the op does not"):
            Wiring.of("scaled", FORWARD, Signature.of("scaled", wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fake": lambda x, scale: x}, "scaled: fake: the schema has no argument scale"),
        ({"check": lambda y: None}, "scaled: check: the schema has no argument y"),
        ({"cuda_limit": lambda y: ""}, "scaled: cuda_limit: the schema has no argument y"),
        ({"sizes": lambda y: ()}, "scaled: sizes: the schema has no argument y"),
        ({"autocast": ("out",)}, "scaled: autocast: the schema has no out"),
        ({"non_differentiable": ("x",)}, "scaled: non_differentiable: the schema has no x"),
        (
            {"backward": Backward("(Tensor grad) -> Tensor grad_x", torch.clone, torch.clone)},
            "scaled: its backward op names grad, which",
        ),
        (
            {
                "backward": Backward(
                    "(Tensor grad_out) -> Tensor grad_x", torch.clone, lambda grad_out: grad_out
                )
            },
            r"scaled: its backward op does not receive .*: take it there, or say .* in Backward\(missing",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_names_are_refused_before_anything_is_registered(change: dict[str, Any], message: str) -> None:
    rules: dict[str, Any] = {"reference": torch.clone, "fake": lambda x: x, "check": lambda x: None}
    with pytest.raises(ValueError, match=message):
        register("scaled", SCHEMA, **{**rules, **change})
    assert "scaled" not in OPERATORS
    assert not hasattr(torch.ops.ifdd, "scaled")


def test_an_op_of_a_few_lines_has_gradients_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments of the backward op in another order than anywhere else, and one that it does not take."""
    monkeypatch.setattr(_operator, "OPERATORS", {})

    def definition(x: Tensor, weight: Tensor | None, offset: int) -> tuple[Tensor, Tensor]:
        scale = torch.ones_like(x) if weight is None else weight.expand_as(x)
        return (x + offset) * scale, scale.clone()

    def derivative(scale: Tensor, grad_out: Tensor, offset: int, x: Tensor) -> tuple[Tensor, Tensor]:
        return grad_out * (x + offset), grad_out * scale

    operator = register(
        "scaled_copy",
        "(Tensor x, Tensor? weight, int offset) -> (Tensor out, Tensor scale)",
        reference=definition,
        fake=lambda x: (torch.empty_like(x), torch.empty_like(x)),
        check=lambda x: None,
        backward=Backward(
            "(Tensor scale, Tensor grad_out, int offset, Tensor x) -> (Tensor grad_weight, Tensor grad_x)",
            reference=derivative,
            fake=lambda x: (torch.empty_like(x), torch.empty_like(x)),
        ),
        non_differentiable=("scale",),
        autocast=("x", "weight"),
    )
    x, weight = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for call in (operator.overload(), operator.overload("reference"), lambda *a: operator("native", *a)):
        assert torch.autograd.gradcheck(lambda *a, call=call: call(*a)[0], (x, weight, 2))
        assert torch.autograd.gradcheck(lambda x, call=call: call(x, None, 1)[0], (x,))
    torch.library.opcheck(operator.overload(), (x, weight, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert operator("native", x.float(), weight.float(), 0)[0].dtype == torch.bfloat16


def test_public_functions_take_what_the_schema_names() -> None:
    """The registry calls the public function for the arguments of a schema: of each op, and each sample."""
    for entry in REGISTRY.values():
        for sample in entry.samples(Maker(torch.float32)):
            results = outputs_of(entry.public(*sample.args, backend="reference"))
            wanted = outputs_of(entry.overload(*sample.args))
            assert [r.shape for r in results] == [w.shape for w in wanted[: len(results)]]
