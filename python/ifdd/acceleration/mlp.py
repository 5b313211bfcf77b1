"""The MLP of all MViTs: two products with GELU between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ifdd.acceleration.classes import Accelerated, backend_of, takes
from ifdd.modules.children import apply_linear, is_untouched, weight_and_bias
from ifdd_kernels import gelu_linear


class Layers(NamedTuple):
    """Of an MLP, in the order of their calls but for the dropouts behind the products."""

    first: nn.Module
    activation: nn.Module
    second: nn.Module
    dropouts: Sequence[Any]


def run_mlp(owner: Accelerated, layers: Layers, x: Tensor) -> Tensor | None:
    """second(GELU(first(x))) of layers that are read; None where they have to be called.

    Only the argument of GELU is kept for backward.
    """
    activation: Any = layers.activation
    found = weight_and_bias(layers.second, nn.Linear)
    computed = (
        found is not None
        and weight_and_bias(layers.first, nn.Linear) is not None
        and type(activation) is nn.GELU
        and is_untouched(activation)
        and activation.approximate == "none"
        and all(
            type(layer) is nn.Dropout and is_untouched(layer) and (layer.p == 0 or not layer.training)
            for layer in layers.dropouts
        )
    )
    if not computed:
        return None
    assert found is not None
    return gelu_linear(apply_linear(layers.first, x), *found, backend=backend_of(owner, "gelu_linear"))


def why_not_run(layers: Layers) -> str:
    """The reason why :func:`run_mlp` cannot run layers of the right classes, in words; empty if it can."""
    activation: Any = layers.activation
    if activation.approximate != "none":
        return f"has a GELU approximated by {activation.approximate!r}"
    if any(type(layer) is not nn.Dropout for layer in layers.dropouts):
        return "has another layer in the place of a dropout"
    rate = max((layer.p for layer in layers.dropouts), default=0)
    if rate > 0:
        return f"has a dropout of {rate}"
    called = (activation, *layers.dropouts)
    products = (layers.first, layers.second)
    if not all(map(is_untouched, called)) or not all(weight_and_bias(layer, nn.Linear) for layer in products):
        return "has a hook, a tensor subclass or no bias in a layer whose weights would be read"
    return ""


class TwoLayerMLP(Accelerated):
    """An `Mlp` of fc1, act and fc2: keeps only the argument of GELU for backward. All its layers are read."""

    #: Name of the dropout behind both products, there if `NAME_rate` is above 0.
    dropout_name: str

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C')."""
        out = run_mlp(self, two_layers(self, self.dropout_name), x) if takes(x) else None
        return super().forward(x) if out is None else out


def two_layers(mlp: Any, dropout: str) -> Layers:
    """The layers of an `Mlp` with fc1, act, fc2 and a dropout of that name."""
    return Layers(
        mlp.fc1, mlp.act, mlp.fc2, (getattr(mlp, dropout),) if getattr(mlp, f"{dropout}_rate") > 0 else ()
    )
