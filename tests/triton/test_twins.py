"""Every Triton op on the registry's samples: values, gradients, PyTorch's rules for ops, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.library import opcheck

from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Entry, Maker, backward_arguments
from ops.cases import with_gradients
from ops.twins import check_twin, lowered

WRITTEN = [REGISTRY[name] for name, operator in OPERATORS.items() if "triton" in operator.twins]
SAMPLES = [
    pytest.param(entry, sample.label, id=f"{entry.name}-{sample.label}")
    for entry in WRITTEN
    for sample in entry.samples(Maker(torch.float32))
]
FIRST = [pytest.param(entry, id=entry.name) for entry in WRITTEN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("entry", "label"), SAMPLES)
def test_values_and_gradients(entry: Entry, label: str, dtype: torch.dtype) -> None:
    check_twin(entry, lowered(entry, label, dtype))
