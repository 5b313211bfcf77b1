"""``ifdd doctor`` as on a machine with GPUs: with CUDA kernels, without, and with those of another GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.fake_gpu.machine import NAME, cuda_ops, fake_gpu
from fake_gpu.marks import CPU_BUILD
from ifdd.cli import doctor, main
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.backends import BACKENDS
from ifdd_kernels.registry import REGISTRY

pytestmark = CPU_BUILD


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["doctor", "--device", "cuda", *arguments]) == 0
        return capsys.readouterr().out

    return run


def rows(text: str) -> dict[str, list[str]]:
    """Of the table of ops: op -> one cell a backend."""
    found = (line.split("│")[1:-1] for line in text.splitlines() if "│" in line)
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in found}


@pytest.mark.parametrize("has_kernels", [True, False])
def test_every_op_has_a_row(say: Any, has_kernels: bool) -> None:
    with fake_gpu(library=None if has_kernels else frozenset()):
        out = say("--self_test", "false")
    assert f"0: {NAME}, sm_90, 139 GiB" in out
    table = rows(out)
    assert set(table) == set(OPERATORS)
    native = BACKENDS.index("native")
    able = {op for op, cells in table.items() if cells[native] == "yes"}
    composed = {"static_dynamic_split"}
    assert able == ((cuda_ops() | composed) & set(OPERATORS) if has_kernels else set())
    assert "refused native: the native library has no cuda kernel of this op" in out


def test_each_gpu_without_code_is_named(say: Any) -> None:
    with fake_gpu((9, 0), (10, 0), built=("90a-real",)):
        out = say("--self_test", "false")
    assert f"1: {NAME}, sm_100, 139 GiB" in out
    problem = "no native kernels there: the GPU has compute capability 10.0, the native library was built for"
    assert out.count(problem) == 1
    assert out.index("sm_100") < out.index(problem)


@pytest.mark.slow
def test_the_self_test_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the comparison of values, which fake tensors do not have."""
    from ifdd_kernels import testing

    compared = []

    def same_shape(actual: torch.Tensor, expected: torch.Tensor) -> float:
        compared.append(actual.device.type)
        return 0.0 if actual.shape == expected.shape else float("inf")

    class Yes:
        def all(self) -> bool:
            return True

    monkeypatch.setattr(testing, "relative_error", same_shape)
    monkeypatch.setattr(torch, "isfinite", lambda _: Yes())
    with fake_gpu() as machine:
        found = dict(doctor.self_test("cuda"))
    assert len(found) == len(REGISTRY) + 1
    assert {name: problem for name, problem in found.items() if problem is not None} == {}
    assert set(compared) == {"cuda"}
    assert "pool_tokens_backward" in machine.calls
