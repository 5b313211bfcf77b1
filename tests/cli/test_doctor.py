from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import ifdd_kernels
from ifdd.cli import doctor
from ifdd_kernels import __version__, _library
from ifdd_kernels.registry import REGISTRY

Run = Callable[..., Any]


def test_the_doctor_tests_every_op_and_the_network(ifdd: Run) -> None:
    result = ifdd("doctor", "--device", "cpu")
    assert result.code == 0, result.out
    for name in REGISTRY:
        assert f"ok    {name} against its definition in float64" in result.out
    assert "ok    forward and backward pass of a small network" in result.out
    assert torch.__version__ in result.out
    assert "all is well" in result.out
    for key in ifdd_kernels.build_info():
        assert f"  {key}: " in result.out
    if not ifdd_kernels.build_info()["native"]:
        assert "the native library is not loaded" in result.out


def test_a_wrong_kernel_is_found(ifdd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = REGISTRY["lifting_residual"]

    class Broken(type(entry)):  # type: ignore[misc]
        def reference(self, *args: Any) -> Any:
            return super().reference(*args) * 1.001

    fields = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
    monkeypatch.setitem(REGISTRY, "lifting_residual", Broken(**fields))
    result = ifdd("doctor", "--device", "cpu")
    assert result.code == 1
    assert "FAIL  lifting_residual against its definition in float64: sample " in result.out
    assert "relative error" in result.out
    assert "NOT in order" in result.out


def test_a_crash_of_one_op_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> Any:
        raise RuntimeError("no\nkernel")

    entry = replace(REGISTRY["frame_tokens"], samples=crash)
    monkeypatch.setitem(REGISTRY, "frame_tokens", entry)
    problems = dict(doctor.self_test("cpu"))
    assert problems.pop("frame_tokens against its definition in float64") == "RuntimeError: no kernel"
    assert set(problems.values()) == {None}


def test_a_network_that_gives_no_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, float("nan")))
    assert doctor._network_problem("cpu") == "the loss is nan"


def test_gpus_are_named_or_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.gpus()[0].startswith("none visible to PyTorch (built ")

    class Properties:
        name, major, minor, total_memory = "Some GPU", 9, 0, 139 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    assert doctor.gpus() == ["0: Some GPU, sm_90, 139 GiB"]


def test_stale_metadata_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that runs says its version; what pip wrote at an installation in place may be older."""
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1")
    shown = dict(doctor.versions())
    assert shown["ifdd-kernels"].startswith(f"{__version__} (pip has 0.0.1: ")
    assert shown["torch"] == "0.0.1"
    monkeypatch.setattr(metadata, "version", lambda name: __version__)
    assert dict(doctor.versions())["ifdd-kernels"] == __version__


def test_a_library_that_is_not_in_order_fails(ifdd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "problems", lambda folder: [f"hidden in {folder}"])
    result = ifdd("doctor", "--device", "cpu", "--self_test", "false")
    assert result.code == 1
    assert f"FAIL  hidden in {Path.cwd()}" in result.out


def test_a_package_that_cannot_be_imported_fails(
    ifdd: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brokenvision.py").write_text("raise RuntimeError('operator v::nms does not exist')")
    for name in ("upper", "upper_too"):
        (tmp_path / f"{name}.py").write_text("import brokenvision")
    (tmp_path / "lacking.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("numpy", "upper", "upper_too", "lacking", "absent_itself")
    monkeypatch.setattr(doctor, "PACKAGES", {name: name for name in names})
    result = ifdd("doctor", "--self_test", "false", "--device", "cpu")
    assert result.code == 1
    failures = [line.strip() for line in result.out.splitlines() if line.startswith("  FAIL")]
    beside = f"beside torch {metadata.version('torch')}"
    assert failures[:2] == [
        f"FAIL  the package brokenvision cannot be imported {beside}: operator v::nms does not exist",
        "FAIL  the package lacking lacks a package that it needs: not_there_at_all",
    ]
    assert result.out.count("brokenvision") == 1


def test_a_broken_detector_does_not_end_the_report(ifdd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str) -> Any:
        raise OSError("no\nlibrary")

    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    monkeypatch.setattr("ifdd.faces.detector.load_detector", broken)
    result = ifdd("doctor", "--device", "cpu", "--self_test", "false")
    assert result.code == 1
    assert "FAIL  OSError: no library" in result.out
    assert "Kernels of each op on cpu" in result.out
