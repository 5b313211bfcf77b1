"""The ops of a block around its attention: the shortcut's maximum and the halves of the MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs, parameters_of


def shortcut() -> list[Contender]:
    """Maximum over (stride + 1)-wide windows of the grid tokens; the class token passes."""

    def bind(inputs: Inputs) -> Bound:
        grid, stride = inputs.constants["grid"], inputs.constants["stride"]
        kernel = [step + 1 if step > 1 else 1 for step in stride]
        padding = [size // 2 for size in kernel]

        def run(x: Tensor) -> Outputs:
            volume = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], *grid)
            pooled = F.max_pool3d(volume, kernel, stride, padding)
            return (torch.cat((x[:, :1], pooled.flatten(2).transpose(1, 2)), dim=1),)

        return Bound(run, {})

    original = Contender("original", bind)
    return [original, original.compile()]


def joined() -> list[Contender]:
    """A branch added to its stream and the LayerNorm of the sum, which both are needed."""

    def bind(inputs: Inputs) -> Bound:
        parameters, eps = parameters_of(inputs), inputs.constants["eps"]

        def run(x: Tensor, branch: Tensor) -> Outputs:
            added = x + branch
            weight, bias = (parameters[name].to(x.dtype) for name in ("weight", "bias"))
            return added, F.layer_norm(added, weight.shape, weight, bias, eps)

        return Bound(run, parameters)

    original = Contender("original", bind)
    return [original, original.compile()]


def half_of_mlp(op: str) -> list[Contender]:
    """A linear layer (`linear`), or one of GELU(x) (`gelu_linear`)."""

    def bind(inputs: Inputs) -> Bound:
        parameters = parameters_of(inputs)

        def run(x: Tensor) -> Outputs:
            argument = F.gelu(x) if op == "gelu_linear" else x
            return (F.linear(argument, parameters["weight"], parameters["bias"]),)

        return Bound(run, parameters)

    original = Contender("original", bind)
    return [original, original.compile()]
