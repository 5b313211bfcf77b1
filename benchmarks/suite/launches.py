"""The launches of an op's Triton kernels, found without a GPU."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ifdd_kernels._operator import Operator
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.triton._runtime import Launch, captured_launches


def launches_of(operator: Operator, arguments: tuple[Any, ...], architecture: int) -> list[Launch]:
    """The launches of an op's Triton kernels for these arguments, forward and backward."""
    module = importlib.import_module(f"ifdd_kernels.triton.{operator.name}")
    with captured_launches(architecture) as launches:
        outputs = outputs_of(module.forward(*arguments))
        if operator.wiring is not None:
            gradients = [torch.empty_like(output) for output in outputs]
            module.backward(*operator.wiring.arguments(arguments, outputs, gradients))
    return launches
