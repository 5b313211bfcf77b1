"""Every registered op obeys PyTorch's rules for ops: opcheck, gradcheck, completeness of its pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import samples, with_gradients
from torch.library import opcheck

import ifdd_kernels
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.registry import REGISTRY, Entry, Maker, Sample, backward_arguments

ROOT = Path(ifdd_kernels.__file__).parent


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32))
@pytest.mark.parametrize("twin", ["", "reference"])
def test_forward_op(entry: Entry, sample: Sample, twin: str) -> None:
    if entry.operator is None:
        if twin:
            pytest.skip("an op that decomposes has one implementation")
        opcheck(entry.overload, sample.args)
    else:
        opcheck(entry.operator.overload(twin), with_gradients(sample))


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32, differentiable=True))
@pytest.mark.parametrize("twin", ["", "reference"])
def test_backward_op(entry: Entry, sample: Sample, twin: str) -> None:
    if entry.operator is None:
        pytest.skip("an op that decomposes has no backward of its own")
    opcheck(entry.operator.overload(twin, backward=True), backward_arguments(entry.operator, sample.args))


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float64, differentiable=True))
def test_gradcheck(entry: Entry, sample: Sample) -> None:
    assert torch.autograd.gradcheck(entry.overload, with_gradients(sample), fast_mode=True)


def test_every_op_has_all_its_pieces() -> None:
    """An op is a file in ops/, one in reference/, a public function, a registry entry and a docs page."""
    composite = {"lifting_update", "lifting_predict"}
    assert set(REGISTRY) == set(OPERATORS) | composite
    for name in OPERATORS:
        assert (ROOT / "ops" / f"{name}.py").is_file(), f"{name}: no ops/{name}.py"
        assert (ROOT / "reference" / f"{name}.py").is_file(), f"{name}: no reference/{name}.py"
        assert (ROOT.parent / "docs" / "kernels" / f"{name}.md").is_file(), f"{name}: no docs page"
        assert callable(getattr(ifdd_kernels, name)), f"{name}: not exported"
    for entry in REGISTRY.values():
        assert entry.function.__name__ == entry.name
        assert entry.function.__doc__ and "Args:" in entry.function.__doc__
        assert entry.why


def test_samples_cover_what_they_promise() -> None:
    """Each op is tried on a strided input, an empty batch, and (if it has frames) T = 2, 8, 16, 32."""
    for entry in REGISTRY.values():
        made = list(entry.samples(Maker(torch.float32)))
        first = [sample.args[0] for sample in made]
        assert any(x.shape[0] == 0 for x in first), f"{entry.name}: no empty batch"
        if entry.operator is not None:
            assert any(
                not arg.is_contiguous() for s in made for arg in s.args if isinstance(arg, torch.Tensor)
            ), f"{entry.name}: no strided input"
        if entry.name.startswith(("frame_", "split_", "topk_")):
            assert {2, 8, 16, 32} <= {x.shape[1] for x in first}, f"{entry.name}: a clip length is missing"


def test_cost_is_positive_for_work() -> None:
    for entry in REGISTRY.values():
        for sample in entry.samples(Maker(torch.float32)):
            cost = entry.cost(*sample.args)
            if sample.args[0].numel():
                tensors = [arg for arg in sample.args if isinstance(arg, torch.Tensor)]
                assert cost.bytes > sum(t.numel() * t.element_size() for t in tensors), entry.name
            assert cost.flops >= 0
