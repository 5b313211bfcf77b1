"""The native library of a check: found, looked at and built for the device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.gpu import library
from benchmarks.gpu.library import STOP, Found
from benchmarks.suite import results


@pytest.mark.parametrize("ops", [["pool_tokens"], []])
def test_the_real_look_at_a_library_without_cuda_kernels(
    ops: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import ifdd_kernels
    from ifdd_kernels import _library

    monkeypatch.delenv("IFDD_LOG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    info = {"native": True, "reason": "", "cuda_ops": ops, "cpu_ops": [], "path": "/there/_ops.so"}
    monkeypatch.setattr(ifdd_kernels, "build_info", lambda: info)
    assert library.main(["--device", "cuda"]) == STOP
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"STOP: /there/_ops.so has {len(ops)} of 20 CUDA ops, without add_layer_norm,")
    assert ("pool_tokens," in last) == (not ops)
    every = {**info, "cuda_ops": sorted(library.expected_ops())}
    monkeypatch.setattr(ifdd_kernels, "build_info", lambda: every)
    monkeypatch.setattr(library, "_sum_on_device", lambda: "")
    monkeypatch.setattr(_library, "without_code", lambda: "it was built for 80-real")
    monkeypatch.setenv("IFDD_LOG", str(tmp_path / "log.jsonl"))
    monkeypatch.setenv("IFDD_STAGE", "library")
    assert library.main(["--device", "cuda"]) == STOP
    assert "STOP: it was built for 80-real" in capsys.readouterr().out
    (row,) = results.read(tmp_path / "log.jsonl", "library")
    assert (row["problem"], row["for_another_gpu"]) == ("it was built for 80-real", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert library.main(["--device", "cuda"]) == STOP
    assert "finds no CUDA device" in capsys.readouterr().out


def test_the_library_is_the_one_of_these_sources(tmp_path: Path) -> None:
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "ifdd_kernels").mkdir()
    (tmp_path / "CMakeLists.txt").write_text("project()")
    kernel = tmp_path / "csrc" / "cuda" / "a.cu"
    kernel.write_text('m.impl("a", x); m.impl("a_backward", y);')
    assert library.find(tmp_path) == Found(None, "there is none")
    assert library.expected_ops(tmp_path) == {"a", "a_backward"}
    file = tmp_path / "ifdd_kernels" / "_ops.so"

    def built(digest: str) -> str:
        file.write_bytes(b"\x7fELF..." + b"ifdd-sources:" + digest.encode() + b"\0more")
        return library.find(tmp_path, cuda=False).problem

    own = library._DIGEST["digest"](tmp_path)
    assert built(own) == ""
    assert "other sources" in built("0" * 64)
    assert "does not say" in built("unknown")
    file.write_bytes(b"\x7fELF...")
    assert "does not say" in library.find(tmp_path).problem
    built(own)
    assert "without CUDA kernels" in library.find(tmp_path).problem
    kernel.write_text(kernel.read_text() + "\n")
    assert "other sources" in library.find(tmp_path).problem


def test_the_library_of_this_checkout_is_of_its_sources() -> None:
    """setup.py writes the digest into it."""
    found = library.find(cuda=False)
    if found.path is None:
        pytest.skip("there is no native library in this checkout")
    assert not found.problem, f"{found.problem}: install again"


@pytest.mark.parametrize(
    ("capability", "architecture"), [("9.0", "90a-real"), ("8.9", "89-real"), ("10.0", "100a-real")]
)
def test_the_build_is_for_the_device(
    capability: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IFDD_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(library, "find_tool", lambda name: f"/opt/cuda/bin/{name}")
    stage = library.build(capability, 100.0)
    assert stage.environment["IFDD_CUDA"] == "ON"
    assert stage.environment["IFDD_CUDA_ARCHS"] == architecture
    assert stage.environment["MAX_JOBS"] == str(os.cpu_count())
    assert stage.environment["PATH"].startswith("/opt/cuda/bin")
    monkeypatch.setattr(library, "find_tool", lambda name: None)
    assert library.build(capability, 100.0).skip == "there is no nvcc"
