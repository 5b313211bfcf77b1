"""Loading of the native library and what is said about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ifdd_kernels
from ifdd_kernels import _library

PACKAGE = Path(ifdd_kernels.__file__).parent
needs_native = pytest.mark.skipif(
    not _library.loaded(), reason=f"native library not loaded: {_library.failure()}"
)
PROBE = """
import json, torch, ifdd_kernels
from ifdd_kernels import _library
x, index = torch.randn(1, 4, 3, 5), torch.tensor([[0.7, 2.2]])
static, _ = ifdd_kernels.split_frames(x, index, index)
expected, _ = ifdd_kernels.split_frames(x, index, index, backend="reference")
torch.testing.assert_close(static, expected)
refusal = ""
try:
    ifdd_kernels.split_frames(x, index, index, backend="native")
except RuntimeError as error:
    refusal = str(error)
print(json.dumps({"info": ifdd_kernels.build_info(), "refusal": refusal, "failure": _library.failure()}))
"""


def probe(path: Path, **variables: str) -> dict[str, object]:
    """What a fresh process that finds the package in ``path`` says of it."""
    process = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path), **variables},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result: dict[str, object] = json.loads(process.stdout.splitlines()[-1])
    return result


@pytest.fixture
def python_only(tmp_path: Path) -> Path:
    """A folder with the Python files of the package and nothing native."""
    shutil.copytree(PACKAGE, tmp_path / "ifdd_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_without_library_ops_run_and_the_reason_is_told(python_only: Path) -> None:
    result = probe(python_only)
    info = result["info"]
    assert info["native"] is False
    assert info["path"] is None
    assert info["cpu_ops"] == []
    assert "instruction_set" not in info
    for text in (info["reason"], result["refusal"]):
        assert str(python_only / "ifdd_kernels") in text
        assert "--no-build-isolation" in text


def test_unloadable_library_is_reported_not_raised(python_only: Path) -> None:
    (python_only / "ifdd_kernels" / "_ops.so").write_bytes(b"not a library")
    result = probe(python_only)
    assert result["info"]["native"] is False
    assert "_ops.so does not load with torch" in result["failure"]
    assert "--no-build-isolation" in result["refusal"]


def test_failure_of_this_process_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "_state", None)
    monkeypatch.setattr(_library, "_find", lambda name: None)
    assert not _library.loaded()
    assert "no _ops*.so" in _library.failure()
    assert ifdd_kernels.build_info()["native"] is False

    broken = tmp_path / "_ops.so"
    broken.write_bytes(b"\x7fELF")
    monkeypatch.setattr(_library, "_state", None)
    monkeypatch.setattr(_library, "_find", lambda name: broken)
    assert not _library.load()
    assert str(broken) in _library.failure()


@pytest.mark.parametrize("content", [None, b"not a module"])
def test_build_info_without_runtime_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    module = tmp_path / "_runtime.so"
    if content is not None:
        module.write_bytes(content)
    monkeypatch.setattr(_library, "_find", lambda name: module if content else None)
    assert _library._runtime_info() == {}


@needs_native
def test_build_info_of_a_native_build() -> None:
    info = ifdd_kernels.build_info()
    assert info["version"] == ifdd_kernels.__version__
    assert info["torch"] == torch.__version__
    assert info["native"] is True
    assert info["reason"] == ""
    assert Path(info["path"]).is_file()
    assert info["compiler"].split()[1][0].isdigit()
    assert "-O" in info["flags"]
    assert info["torch_target"] == "2.11"
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["cuda_architectures"] == () or info["cuda_ops"]


@needs_native
def test_native_ops_are_those_of_the_dispatcher() -> None:
    assert {"split_frames", "split_frames_backward"} <= _library.native_ops("cpu")
    assert "split_frames_reference" not in _library.native_ops("cpu")
    assert _library.native_ops("mps") == frozenset()


@needs_native
def test_environment_lowers_the_instruction_set() -> None:
    compiled = ifdd_kernels.build_info()["instruction_sets"]
    root = PACKAGE.parent
    assert probe(root, IFDD_CPU_ISA=compiled[0])["info"]["instruction_set"] == compiled[0]
    best = ifdd_kernels.build_info()["instruction_set"]
    if "IFDD_CPU_ISA" not in os.environ:
        assert probe(root, IFDD_CPU_ISA="no-such-set")["info"]["instruction_set"] == best
