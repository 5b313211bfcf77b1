"""This library as a contender: every backend that can run here, and its modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import ifdd_kernels
from benchmarks.rivals import network
from benchmarks.rivals.contender import Bound, Contender, Inputs, Outputs, parameters_of
from ifdd.checkpoint import from_original
from ifdd_kernels._arguments import public
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.backends import BACKENDS, can_run, composed, select
from ifdd_kernels.registry import REGISTRY, Entry


def backends(op: str, device: str) -> list[str]:
    """Backends of an op with kernels or a definition that run on a device, the reference last.

    ``auto`` is one of these by another name. Triton on a CPU is its interpreter, which tests use: nothing to
    be timed.
    """
    probe = torch.empty(0, device=device)
    left_out = {"auto", "sdpa"} if device == "cuda" else {"auto", "sdpa", "triton"}
    names = [name for name in BACKENDS if name not in left_out and can_run(op, name, probe)]
    # What runs as its parts there has no kernels of its own: the parts are measured.
    return [name for name in names if not composed(OPERATORS[op], device, name)]


def _differentiable(entry: Entry, result: object) -> Outputs:
    """The outputs a user sees: without what is kept for backward."""
    # None of them are: integer results, like ranked frame numbers.
    return tuple(entry.differentiable(result)) or outputs_of(result)


def _bind(entry: Entry, call: Callable[..., object], inputs: Inputs) -> Bound:
    parameters = parameters_of(inputs)
    names = entry.signature.arguments
    fixed = {**inputs.constants, **parameters}
    places = [names.index(name) for name in inputs.activations]
    template = [fixed.get(name) for name in names]

    def run(*activations: Tensor) -> Outputs:
        arguments = list(template)
        for place, value in zip(places, activations, strict=True):
            arguments[place] = value
        return _differentiable(entry, call(*arguments))

    return Bound(run, parameters)


def op_contender(op: str, backend: str) -> Contender:
    """One backend of an op, called as the public function calls it."""
    entry = REGISTRY[op]

    def bind(inputs: Inputs) -> Bound:
        if entry.operator is None:  # decomposes into other ops, which choose for themselves
            return _bind(entry, entry.overload, inputs)
        x = next(iter(inputs.activations.values()))
        return _bind(entry, functools.partial(entry.operator, select(op, backend, x)), inputs)

    return Contender(backend, bind, ours=backend != "sdpa")


def op_contenders(op: str, device: str) -> list[Contender]:
    """All backends of an op on a device."""
    if REGISTRY[op].operator is None:
        return [op_contender(op, "native")]
    # On a GPU "auto" may choose it: it is timed as it would run, while the "rewrite" keeps its constants.
    others = OPERATORS[op].compositions if device == "cuda" else ()
    return [op_contender(op, backend) for backend in (*backends(op, device), *others)]


def meta_arguments(op: str, inputs: Inputs) -> tuple[Any, ...]:
    """Arguments of an op like these inputs, without memory."""
    ordered = REGISTRY[op].signature.order(inputs.named())
    return tuple(v.detach().to("meta") if isinstance(v, Tensor) else v for v in ordered)


def choice_fields(op: str, inputs: Inputs, activations: torch.dtype) -> dict[str, object]:
    """The key by which ``auto`` finds a row's measurement: dtype (autocast's where it casts) and sizes."""
    operator = OPERATORS.get(op)
    if operator is None:
        return {}
    arguments = operator.signature.order(inputs.named())
    dtype = activations if operator.casts_input else arguments[0].dtype
    return {"dtype": str(dtype).removeprefix("torch."), "sizes": list(operator.sizes(*arguments))}


def definition(op: str) -> Contender:
    """The op's definition in plain PyTorch, differentiated by PyTorch: the truth in float64."""
    entry = REGISTRY[op]
    return Contender("definition", lambda inputs: _bind(entry, entry.reference, inputs))


def issm(backend: str) -> Contender:
    """Frames to both normalised groups: ``static_dynamic_split``."""

    def bind(inputs: Inputs) -> Bound:
        parameters = parameters_of(inputs)
        keywords = public("static_dynamic_split", {**parameters, **inputs.constants})

        def run(x: Tensor) -> Outputs:
            found = ifdd_kernels.static_dynamic_split(x, **keywords, backend=backend)
            return found.static, found.dynamic

        return Bound(run, parameters)

    return Contender(backend, bind, ours=True)


def issm_contenders(device: str) -> list[Contender]:
    """Every backend that has the two ops it consists of; a GPU runs them one after the other."""
    both = [set(backends(op, device)) for op in ("split_index", "split_frames")]
    return [issm(name) for name in backends("split_index", device) if all(name in b for b in both)]


def module_contender(
    make: Callable[[], nn.Module], part: str, outputs: Callable[[nn.Module, Tensor], Outputs]
) -> Contender:
    """A module of ``ifdd`` with the original's weights, on the backends that ``auto`` chooses."""

    def transform(original: nn.Module) -> nn.Module:
        module = make()
        module.load_state_dict(from_original(original.state_dict(), part, target=module).state_dict)
        return module

    return replace(network.contender("ifdd", transform, outputs), ours=True)
