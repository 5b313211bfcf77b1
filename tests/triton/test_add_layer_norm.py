"""Triton's add_layer_norm where the registry's samples do not reach."""

from __future__ import annotations

import pytest
import torch

from ifdd_kernels import _arguments
from ifdd_kernels.registry import Maker
from ops.triton_cases import DEVICE, check, device_tiles


@pytest.mark.parametrize("choice", range(2))
def test_tiles_of_every_configuration(choice: int) -> None:
    """Rows that no tile divides, in several programs, and samples that share one."""
    from ifdd_kernels.triton import add_layer_norm

    make = Maker(torch.float32, DEVICE, seed=choice)
    with device_tiles(choice, add_layer_norm):
        check("add_layer_norm", *_arguments.add_layer_norm(make, (3, 7, 96)).of("add_layer_norm"))
        check("add_layer_norm", *_arguments.add_layer_norm(make, (1, 2, 1100), False).of("add_layer_norm"))


def test_programs_of_several_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from ifdd_kernels.triton import add_layer_norm

    monkeypatch.setattr(add_layer_norm, "MOST_CHUNKS", 4)
    make = Maker(torch.bfloat16, DEVICE)
    with device_tiles(0, add_layer_norm):
        check("add_layer_norm", *_arguments.add_layer_norm(make, (5, 13, 96)).of("add_layer_norm"))


def test_no_gradient_of_the_sum_is_one_of_zeros() -> None:
    given = _arguments.add_layer_norm(Maker(torch.float32, DEVICE), (2, 5, 24))
    added, normed, mean, rstd = torch.ops.ifdd.add_layer_norm_triton(*given.of("add_layer_norm"))
    kept = added, given.parameters["weight"], given.constants["kept"], mean, rstd, 0.75
    backward = torch.ops.ifdd.add_layer_norm_backward_triton
    pairs = zip(backward(None, normed, *kept), backward(torch.zeros_like(added), normed, *kept), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
