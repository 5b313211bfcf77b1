"""Launching, configurations, precision rule, refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from ifdd_kernels import _measured
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.triton import _runtime, _tuned, interpreted, refusal
from ifdd_kernels.triton._runtime import Kernel, captured_launches, dot_precision
from ifdd_kernels.triton._tuning import Config

DEVICE = "cpu" if interpreted() else "cuda"
SMALL, LARGE = Config({"block": 16}, 1, 1), Config({"block": 64}, 2, 1)


@triton.jit
def _double(x, y, size, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < size), mask=i < size)


def _kernel(**options: Any) -> Kernel:
    return Kernel(_double, lambda arguments: [SMALL, LARGE], key=("size",), **options)


def _grid(size: int) -> Any:
    return lambda tiles: (_runtime.cdiv(size, tiles["block"]),)


@pytest.mark.parametrize("size", [0, 1, 16, 100])
def test_a_launch_covers_every_size(size: int) -> None:
    x = torch.randn(size, device=DEVICE)
    y = torch.full_like(x, float("nan"))
    _kernel()(_grid(size), x=x, y=y, size=size)
    assert torch.equal(y, 2 * x)


@pytest.mark.skipif(not interpreted(), reason="for Triton's interpreter")
def test_the_interpreter_gets_its_own_tiles() -> None:
    seen: list[int] = []

    def grid(tiles: Any) -> tuple[int]:
        seen.append(tiles["block"])
        return (1,)

    x = torch.randn(256)
    _kernel(interpreter=lambda arguments: {"block": 256})(grid, x=x, y=torch.empty_like(x), size=256)
    assert seen == [256]


def test_captured_launches_run_nothing() -> None:
    x = torch.randn(8)
    y = torch.full_like(x, 3)
    with captured_launches() as launches:
        _kernel()(_grid(8), x=x, y=y, size=8)
    assert (y == 3).all()
    assert [(launch.kernel.name, launch.configs) for launch in launches] == [("_double", [SMALL, LARGE])]


def test_tables_hold_choices_that_exist() -> None:
    for choices in _tuned.CHOSEN.values():
        for config in choices.values():
            Config(**config)
    for ops in _measured.FASTEST.values():
        for op, entries in ops.items():
            operator = OPERATORS[op]
            known = {"native", "reference", *operator.backends, *operator.compositions}
            assert {entry.backend for entry in entries} <= known


def test_float32_products_follow_pytorchs_switch() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert dot_precision(torch.float32) == "tf32x3"
        assert dot_precision(torch.bfloat16) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert dot_precision(torch.float32) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert dot_precision(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in refusal("cpu", torch.float32)
    assert "the input is on mps" in refusal("mps", torch.float32)
    assert "the input is float64" in refusal("cuda", torch.float64)
    assert refusal("cuda", torch.bfloat16) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
    assert "8.0, the device has 7.5" in refusal("cuda", torch.float32)
    monkeypatch.setattr("ifdd_kernels.triton._installed", lambda: False)
    assert "pip install triton" in refusal("cuda", torch.float32)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch, ifdd_kernels
assert torch.isfinite(ifdd_kernels.frame_correlation(torch.randn(1, 2, 3), 1.0)).all()
print(ifdd_kernels.backends.can_run("pool_tokens", "triton").reason)
"""


def test_without_triton_everything_else_works() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "pip install triton" in ran.stdout or "no Triton kernels" in ran.stdout


def test_importing_the_package_defines_no_kernel() -> None:
    code = "import sys, ifdd_kernels; sys.exit('ifdd_kernels.triton._runtime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
