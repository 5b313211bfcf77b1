"""A GPU that the native library has no code for, alone and beside one that it has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.fake_gpu.machine import ARCHITECTURES, ROOT, fake_gpu
from fake_gpu.marks import CPU_BUILD
from ifdd_kernels import _library, backends
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.backends import can_run, select

WRITTEN = sorted(name for name, operator in OPERATORS.items() if "triton" in operator.backends)
HOPPER_ONLY = ("90a-real",)


@pytest.mark.parametrize(
    ("architecture", "runs_on", "not_on"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0), (12, 0)]),
        ("90a", [(9, 0)], [(10, 0)]),
        ("90a-virtual", [(9, 0)], [(10, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 1)], [(8, 9), (7, 5)]),
        ("90", [(9, 0), (10, 0)], [(8, 9)]),
        ("100-real", [(10, 0), (10, 3)], [(9, 0), (11, 0), (12, 0)]),
        ("100f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("100f-virtual", [(10, 0), (10, 3)], [(12, 0)]),
        ("120a-real", [(12, 0)], [(12, 1), (10, 0)]),
        ("all-major", [(7, 5), (9, 0)], []),
    ],
)
def test_what_code_runs_on(
    architecture: str, runs_on: list[tuple[int, int]], not_on: list[tuple[int, int]]
) -> None:
    assert [c for c in runs_on if not _library.has_code(architecture, c)] == []
    assert [c for c in not_on if _library.has_code(architecture, c)] == []


@pytest.mark.parametrize("op", WRITTEN)
@pytest.mark.parametrize(
    ("capability", "built", "reason"),
    [
        ((10, 0), HOPPER_ONLY, "the GPU has compute capability 10.0, the native library was built for"
         " 90a-real: build it with IFDD_CUDA_ARCHS=100a-real"),
        ((8, 6), HOPPER_ONLY, "compute capability 8.6, .* build it with IFDD_CUDA_ARCHS=86-real"),
        ((7, 5), ARCHITECTURES, "its CUDA kernels need compute capability 8.0, the GPU has 7.5"),
    ],
    ids=["newer", "older", "too old"],
)  # fmt: skip
def test_auto_goes_elsewhere_and_native_says_why(
    op: str, capability: tuple[int, int], built: tuple[str, ...], reason: str
) -> None:
    with fake_gpu(capability, built=built) as machine:
        x = torch.empty(0, device="cuda")
        if op in _library.native_ops("cuda"):
            with pytest.raises(RuntimeError, match=f"^{op}: backend 'native' cannot run: .*{reason}"):
                select(op, "native", x)
            with pytest.raises(RuntimeError, match=reason):
                can_run(op, "native", x, raise_error=True)
            support = can_run(op, "auto", x)
            assert reason.partition(" .*")[0] in support.reason
        # An interpreter's Triton runs anywhere; the compiler's is asked about in tests/triton.
        assert select(op, "auto", x) == "triton"
        assert can_run(op, "auto", x).reason.startswith("chooses triton: ")
        assert not machine.calls


def test_without_triton_the_reference_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.triton, "_installed", lambda: False)
    with fake_gpu((10, 0), built=HOPPER_ONLY):
        support = can_run("lifting_attention", "auto", torch.empty(0, device="cuda"))
        assert support.reason.startswith("chooses reference: Triton is not installed")
        assert "IFDD_CUDA_ARCHS=100a-real" in support.reason
        assert select("lifting_attention", "auto", torch.empty(1, 2, 1, 4, device="cuda")) == "reference"


@CPU_BUILD
def test_the_device_of_the_tensor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.triton, "interpreted", lambda: False)
    op = "lifting_attention"
    with fake_gpu((9, 0), (7, 5), (8, 0), built=HOPPER_ONLY):
        chosen = [select(op, "auto", torch.empty(1, 2, 1, 4, device=f"cuda:{index}")) for index in range(3)]
        answers = [can_run(op, "native", torch.empty(0, device=f"cuda:{index}")).ok for index in range(3)]
        compiled = [can_run(op, "triton", torch.empty(0, device=f"cuda:{index}")) for index in range(3)]
    assert chosen == ["native", "reference", "triton"]
    assert answers == [True, False, False]
    assert [support.ok for support in compiled] == [True, False, True]
    assert compiled[1].reason == "Triton kernels need compute capability 8.0, the device has 7.5"


@CPU_BUILD
def test_an_op_that_falls_back_runs() -> None:
    with fake_gpu((10, 0), built=HOPPER_ONLY) as machine:
        x = torch.randn(1, 8, 1, 4, device="cuda", requires_grad=True)
        out = OPERATORS["lifting_attention"](select("lifting_attention", "auto", x), x, x, x, 0.5)[0]
        out.sum().backward()
    assert machine.calls == ["lifting_attention_triton", "lifting_attention_backward_triton"]
    assert machine.launches


def test_nobody_is_asked_twice() -> None:
    asked = mock.Mock(side_effect=AssertionError("the device was asked again"))
    with fake_gpu():
        x = torch.empty(1, 2, 1, 4, device="cuda")
        select("lifting_attention", "auto", x)
        names = ("get_device_capability", "is_available", "get_device_name")
        with mock.patch.multiple(torch.cuda, **dict.fromkeys(names, asked)):
            assert select("lifting_attention", "auto", x) == "native"
    asked.assert_not_called()


def test_the_library_tells_what_it_was_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = tmp_path / "_ops.so"
    source = ROOT / "csrc" / "architectures.cpp"
    define = '-DIFDD_CUDA_ARCHITECTURES="80-real,90a-real"'
    command = ["g++", "-shared", "-fPIC", "-fvisibility=hidden", define, str(source), "-o", str(built)]
    subprocess.run(command, check=True)
    _library.cuda_architectures.cache_clear()
    monkeypatch.setattr(_library, "_state", _library._State(built, ""))
    assert _library.cuda_architectures() == ("80-real", "90a-real")
    _library.cuda_architectures.cache_clear()
    monkeypatch.setattr(_library, "_state", _library._State(None, "not there"))
    assert _library.cuda_architectures() == ()
    _library.cuda_architectures.cache_clear()
