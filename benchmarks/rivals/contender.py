"""Participants of a benchmark: inputs, and the implementations that turn them into outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ifdd_kernels._arguments import Arguments
from ifdd_kernels.registry import Maker

Outputs = tuple[Tensor, ...]
Gradients = dict[str, Tensor]


@dataclass
class Inputs(Arguments):
    """Named inputs of one case."""

    #: Whether gradients of the activations are wanted (not of a clip, the network's input).
    differentiate: bool = True

    def double(self) -> Inputs:
        """The same values in float64."""
        activations, parameters = (
            {name: _double(value) for name, value in part.items()}
            for part in (self.activations, self.parameters)
        )
        return Inputs(activations, parameters, self.constants, self.differentiate)

    def clip(self, place: int) -> Inputs:
        """One clip of the batch, which is the first axis of every activation."""
        one = {name: value[place : place + 1] for name, value in self.activations.items()}
        return Inputs(one, self.parameters, self.constants, self.differentiate)

    def copy(self) -> Inputs:
        """Other memory for the activations; parameters are shared."""
        copies = {name: value.clone() for name, value in self.activations.items()}
        return Inputs(copies, self.parameters, self.constants, self.differentiate)


def _double(value: Tensor) -> Tensor:
    return value.detach().double() if value.is_floating_point() else value


class DeviceMaker(Maker):
    """Makes activations on the device itself: the largest has 231 million values. None on the meta device."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        super().__init__(dtype, device, seed)
        self._on_device = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Contiguous normal values."""
        values = torch.randn(shape, generator=self._on_device, device=self.device)
        return values.mul_(scale).to(self.dtype)


@dataclass
class Bound:
    """An implementation with its parameters: a function of the activations, in their order."""

    function: Callable[..., Outputs]
    #: Parameters that gradients are taken of, under the implementation's names.
    parameters: dict[str, Tensor]
    #: Gradients of the parameters, under the names that all implementations share.
    rename: Callable[[Gradients], Gradients] = dict


class Setup:
    """What must be there before an implementation is bound, and takes long. Equal ones are shared."""

    def seconds(self, inputs: Inputs) -> float:
        """How long it will take, for budgets; 0 where it is done."""
        raise NotImplementedError

    def run(self, inputs: Inputs, say: Callable[[str], None]) -> None:
        """Does it, if it is not done."""
        raise NotImplementedError


def _never(precision: torch.dtype) -> str:
    return ""


@dataclass(frozen=True)
class Contender:
    """An implementation in a benchmark."""

    name: str
    bind: Callable[[Inputs], Bound]
    #: Puts the activations into the memory layout in which this implementation's predecessor leaves them.
    layout: Callable[[Tensor], Tensor] | None = None
    #: Whether a CUDA graph can hold it. The original cannot: it copies index tables from the host.
    capturable: bool = True
    #: Options of torch.compile; None runs it as it is.
    compiled: Mapping[str, Any] | None = None
    #: Whether it is this library's.
    ours: bool = False
    #: What is entered around every step of it.
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    #: Why it cannot run here with activations of a dtype; empty if it can.
    refusal: Callable[[torch.dtype], str] = _never
    setup: Setup | None = None
    #: Whether it takes its memory from PyTorch, which counts it.
    counted_memory: bool = True
    #: Whether it only bounds the others: it has no result that could be compared.
    limit: bool = False
    #: More about it, for its rows.
    fields: Mapping[str, Any] = field(default_factory=dict)

    def compile(self, suffix: str = "compile", **options: Any) -> Contender:
        """The same under torch.compile, static shapes."""
        name = f"{self.name}+{suffix}"
        return replace(self, name=name, capturable=False, compiled=options)


def parameters_of(inputs: Inputs) -> dict[str, Tensor]:
    """The inputs' parameters as leaves; modules take them over as they are, so that all names are shared."""
    return {name: nn.Parameter(value) for name, value in inputs.parameters.items()}


def adopt(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Puts parameters into a module under dotted names, in place of its own."""
    for name, value in parameters.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)
    return module


@dataclass
class Step:
    """One contender bound to one set of inputs, ready to run: a forward pass, or with the gradients."""

    contender: Contender
    bound: Bound
    activations: list[Tensor]
    leaves: dict[str, Tensor]
    training: bool
    cotangents: list[Tensor] | None = None

    def forward(self) -> Outputs:
        """The outputs; keeps a graph only in training."""
        with torch.set_grad_enabled(self.training):
            return self.bound.function(*self.activations)

    def __call__(self) -> tuple[Outputs, Sequence[Tensor | None]]:
        """Outputs and gradients of :attr:`leaves`, none for inference."""
        with self.contender.around():
            return self._run()

    def _run(self) -> tuple[Outputs, Sequence[Tensor | None]]:
        # A training step enters autocast anew, so it casts its weights anew; measurements stay inside.
        torch.clear_autocast_cache()
        outputs = self.forward()
        if not self.training:
            return outputs, ()
        if self.cotangents is None:
            self.cotangents = [cotangent(out, place) for place, out in enumerate(outputs)]
        grads = torch.autograd.grad(outputs, list(self.leaves.values()), self.cotangents, allow_unused=True)
        return tuple(out.detach() for out in outputs), grads

    def name_gradients(self, grads: Sequence[Tensor | None]) -> Gradients:
        """Gradients by the names that all implementations of a case share; unused leaves have zeros."""
        named = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(self.leaves.items(), grads, strict=True)
        }
        own = {name: named.pop(name) for name in list(named) if name in self.bound.parameters}
        return {**named, **self.bound.rename(own)}


def cotangent(output: Tensor, place: int) -> Tensor:
    """A fixed random gradient of an output, the same numbers in every precision: bfloat16 holds them.

    Drawn on the output's device: block 0 of sixteen clips has 38 million values an output.
    """
    generator = torch.Generator(output.device).manual_seed(1000 + place)
    values = torch.randn(output.shape, generator=generator, device=output.device)
    return values.bfloat16().to(output.dtype)


def prepare(contender: Contender, inputs: Inputs, training: bool, bound: Bound | None = None) -> Step:
    """A step on these inputs; ``bound`` shares the parameters (and the compiled code) of an earlier one."""
    if bound is None:
        bound = contender.bind(inputs)
        if contender.compiled is not None:
            bound.function = torch.compile(bound.function, dynamic=False, **contender.compiled)
    activations = {}
    for name, value in inputs.activations.items():
        value = value if contender.layout is None else contender.layout(value)
        wants = training and inputs.differentiate and value.is_floating_point()
        activations[name] = value.detach().requires_grad_(wants)
    leaves = {name: value for name, value in activations.items() if value.requires_grad}
    if training:
        leaves.update(bound.parameters)
    return Step(contender, bound, list(activations.values()), leaves, training)
