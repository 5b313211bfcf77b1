"""Results of ops can be changed in place, as those of PyTorch's layers: no views, nothing shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import ifdd_kernels
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels._schema import outputs_of
from ifdd_kernels.registry import REGISTRY, Maker


def calls(name: str, backend: str, grad: bool) -> list[tuple[list[Any], tuple[torch.Tensor, ...]]]:
    """Arguments and results of an op's samples, by its function and by the registered op."""
    operator, found = OPERATORS[name], []
    for sample in REGISTRY[name].samples(Maker(torch.float32)):
        for function in (lambda *args: operator(backend, *args), operator.overload(backend)):
            args = [
                arg.detach().clone().requires_grad_(grad and arg.is_floating_point())
                if isinstance(arg, torch.Tensor)
                else arg
                for arg in sample.args
            ]
            found.append((args, outputs_of(function(*args))))
    return found


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_results_share_memory_with_nothing(name: str, backend: str) -> None:
    for grad in (False, True):
        for args, results in calls(name, backend, grad):
            taken = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, torch.Tensor)}
            results = tuple(result for result in results if result.numel())
            storages = {result.untyped_storage()._cdata for result in results}
            assert len(storages) == len(results)
            assert not storages & taken
            for result in results:
                assert not result._is_view()
                assert result.untyped_storage().nbytes() == result.numel() * result.element_size()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_in_place_ops_behind_linear_layers(backend: str) -> None:
    """Residual sum, activation and dropout in place, with the gradients of the same out of place."""
    x, residual = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 4, dtype=torch.float64)
    parameters = [torch.randn(4, 8, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    for op in (ifdd_kernels.linear, ifdd_kernels.gelu_linear):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *parameters)]
        inside = op(*leaves, backend=backend)
        inside += residual
        F.dropout(F.relu_(inside), 0.0, training=True, inplace=True)
        outside = torch.relu(op(*leaves, backend=backend) + residual)
        assert torch.equal(inside, outside)
        got = torch.autograd.grad(inside.square().sum(), leaves)
        wanted = torch.autograd.grad(outside.square().sum(), leaves)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_a_result_of_no_grad_takes_part_in_training_later() -> None:
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(4, 8), torch.randn(4)
    with torch.no_grad():
        out = ifdd_kernels.gelu_linear(x, weight, bias)
    scale = torch.ones(4, requires_grad=True)
    out.mul_(scale).sum().backward()
    assert scale.grad is not None
