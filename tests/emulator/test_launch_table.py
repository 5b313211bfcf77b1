"""The launches of CUDA C++ ops that counts of the network assume, against the launchers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.counted.native import LOSS_CHUNK, NATIVE
from benchmarks.gpu.library import expected_ops
from emulator import build
from emulator.build import EmulatedOp
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker

pytestmark = pytest.mark.skipif(build.compiler is None, reason="the emulator needs a C++ compiler")


def _arguments(name: str) -> Iterator[tuple[Any, ...]]:
    if name == "lifting_loss":
        for count in (LOSS_CHUNK, LOSS_CHUNK + 1):
            yield torch.empty(1, count), 1.0, 1.0, False
    else:
        yield next(iter(REGISTRY[name].samples(Maker(torch.float32)))).args


def test_the_table_has_every_op() -> None:
    assert set(NATIVE) == expected_ops()


@pytest.mark.parametrize("name", sorted(name for name in NATIVE if name in OPERATORS))
def test_launches(name: str) -> None:
    op = EmulatedOp(name)
    for args in _arguments(name):
        op.library.configure(0, list_only=True)
        try:
            results = outputs_of(op.forward(*args))
            assert len(op.library.listed()) == NATIVE[name].started(args)
            if op.operator.wiring is not None:
                given = op.operator.wiring.arguments(args, results, results)
                op.backward(*given)
                assert len(op.library.listed()) == NATIVE[f"{name}_backward"].started(given)
        finally:
            op.library.configure(0)
