"""Every registered op obeys PyTorch's rules for ops: opcheck, gradcheck, completeness of its pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.library import opcheck

import ifdd_kernels
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Entry, Maker, Sample, backward_arguments
from ops.cases import samples, with_gradients

ROOT = Path(ifdd_kernels.__file__).parent


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32, few=1))
def test_forward_op(entry: Entry, sample: Sample) -> None:
    opcheck(entry.overload, with_gradients(sample))


@pytest.mark.parametrize(("entry", "sample"), samples(torch.float32, composed=False, few=1))
def test_forward_of_the_reference_backend(entry: Entry, sample: Sample) -> None:
    assert entry.operator is not None
    opcheck(entry.operator.overload("reference"), with_gradients(sample))


@pytest.mark.parametrize(
    ("entry", "sample"), samples(torch.float32, differentiable=True, composed=False, few=1)
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backward_op(entry: Entry, sample: Sample, backend: str) -> None:
    assert entry.operator is not None
    opcheck(entry.operator.overload(backend, backward=True), backward_arguments(entry.operator, sample.args))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("entry", "sample"), samples(torch.float64, differentiable=True, few=2))
def test_gradcheck(entry: Entry, sample: Sample, backend: str) -> None:
    op = entry.operator.overload(backend) if entry.operator else entry.overload
    assert torch.autograd.gradcheck(op, with_gradients(sample), fast_mode=True)


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
        assert "Args:" in (entry.function.__doc__ or "")
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


def test_cost_counts_each_byte_once() -> None:
    """At least the outputs are written; at most all inputs and outputs are moved."""
    for entry in REGISTRY.values():
        for sample in entry.samples(Maker(torch.float32)):
            cost = entry.cost(*sample.args)
            outputs = outputs_of(entry.overload(*sample.args))
            written = sum(t.numel() * t.element_size() for t in entry.differentiable(outputs))
            tensors = [arg for arg in sample.args if isinstance(arg, torch.Tensor)]
            moved = sum(t.numel() * t.element_size() for t in [*tensors, *outputs])
            assert written <= cost.bytes <= moved, f"{entry.name}, {sample.label}"
            assert cost.flops >= 0


def test_cost_of_a_known_case() -> None:
    """A 3x3x3 pooling of one head and channel on a 1x8x8 grid, keys at stride 8: counted by hand."""
    qkv = torch.randn(1, 65, 3)
    weights, norms = [torch.randn(1, 1, 3, 3, 3)] * 3, [torch.randn(1)] * 6
    sizes = ([1, 8, 8], [1, 8, 8], 1, [1, 1, 1], [1, 8, 8])
    cost = REGISTRY["pool_tokens"].cost(qkv, None, *weights, *norms, *sizes, 1e-6)
    read, written, parameters = 65 + 2 * (1 + 4), 65 + 2 * (1 + 1), 3 * 27 + 6
    assert cost.bytes == 4 * (read + written + parameters)
    assert cost.flops == (54 * 64 + 8 * 65) + 2 * (54 + 8 * 2)
