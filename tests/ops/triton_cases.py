"""Shared by the tests of several Triton ops: a device, checks of hand-made arguments, a device's tiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.triton import _sums, interpreted
from ifdd_kernels.triton._runtime import Kernel
from ops.backend_checks import check_backend

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Grid and pooled side: identity, dividing, ragged, larger than the grid in one axis or both, one cell.
POOLS = (((7, 7), 7), ((14, 14), 7), ((9, 5), 4), ((2, 3), 7), ((5, 9), 7), ((3, 4), 1), ((1, 1), 3))


def check(name: str, *args: Any) -> None:
    """Values and gradients of an op's Triton kernels for given arguments, against float64."""
    check_backend(REGISTRY[name], Sample("", args))


def strided_frames(make: Maker) -> Tensor:
    """Frames (2, 4, 9, 20) with dense channels and no other stride like that of a contiguous tensor."""
    return make.normal(2, 9, 5, 24)[:, :, 1:, 4:].transpose(1, 2)


@contextlib.contextmanager
def device_tiles(choice: int, *modules: ModuleType) -> Iterator[None]:
    """Kernels of these modules run in a configuration meant for a device (the last one if it has fewer).

    The interpreter's own tiles are so large that most tests see one program: this one sees borders between
    programs where a device has them.
    """
    if not interpreted():
        pytest.skip("a device has these tiles anyway")
    with pytest.MonkeyPatch.context() as patch:
        for module in (*modules, _sums):
            for kernel in vars(module).values():
                if isinstance(kernel, Kernel):
                    patch.setattr(kernel, "interpreter", _tiles_of(kernel, choice))
        yield


def _tiles_of(kernel: Kernel, choice: int) -> Any:
    def tiles(arguments: Any) -> Any:
        configs = kernel.configs(arguments)
        return configs[min(choice, len(configs) - 1)].tiles

    return tiles
