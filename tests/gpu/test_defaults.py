"""Tests here run kernels in their default configuration, whatever was chosen before on their machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from ifdd_kernels.triton import _tuned, _tuning
from ifdd_kernels.triton._runtime import Kernel
from ifdd_kernels.triton._tuning import Config

CANDIDATES = DEFAULT, FASTER = Config({"BLOCK": 16}), Config({"BLOCK": 64})
ARGUMENTS = {"x": torch.empty(8), "size": 8}


@triton.jit
def _kernel(x, size, BLOCK: tl.constexpr):
    pass


def _grid(tiles: object) -> tuple[int, ...]:
    return (1,)


def _launch(kernel: Kernel) -> Config:
    return _tuning.choose(kernel, _grid, ARGUMENTS, torch.device("cuda"), lambda config: None)


@pytest.fixture(scope="module", params=["disk", "table"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One for which another configuration than the default was found to be faster, on a stand-in GPU."""
    made = Kernel(_kernel, lambda arguments: CANDIDATES, key=("size",))
    made.function = SimpleNamespace(cache_key="source")
    memories = ("_by_key", "_by_launch", "_default")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tuning, "_device_name", lambda device: "imagined")
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setenv("IFDD_TRITON_CACHE", str(tmp_path_factory.mktemp("earlier")))
        for memory in memories:
            patch.setattr(_tuning, memory, {})
        if request.param == "disk":
            patch.setattr(_tuning, "fastest", lambda *_: FASTER)
            patch.delenv("IFDD_TRITON_TUNE", raising=False)
        else:
            key = _tuning.launch_key(made, _grid, ARGUMENTS, CANDIDATES)
            patch.setattr(_tuned, "CHOSEN", {"imagined": {key: asdict(FASTER)}})
            patch.setenv("IFDD_TRITON_TUNE", "0")
        assert _launch(made) == FASTER
        for memory in memories:
            getattr(_tuning, memory).clear()
        yield made


def test_earlier_choices_are_not_looked_up(kernel: Kernel) -> None:
    assert _launch(kernel) == DEFAULT
