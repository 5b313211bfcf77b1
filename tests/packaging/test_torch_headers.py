"""The check of all sources against the oldest torch: that it sees what is newer, and never passes over it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import torch_headers
from benchmarks.gpu.torch_headers import NoNetworkError, checks, headers, oldest_version, run, version_of

ROOT = Path(__file__).parents[2]
VERSION = "2.11.0"
NEWER = "STABLE_TORCH_ERROR_CODE_CHECK"  # not in the headers of 2.11

needs_build = pytest.mark.skipif(
    None in (shutil.which("cmake"), shutil.which("ninja"), shutil.which(os.environ.get("CXX", "g++"))),
    reason="needs cmake, ninja and a C++ compiler",
)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The oldest headers, where an earlier check has left them; else the installed torch's as they would be
    without the newer macro, which they use themselves.
    """
    real = torch_headers.cache_folder() / f"torch-{oldest_version()}"
    if real.is_dir():
        return real
    installed = torch_headers.installed_include()
    folder = tmp_path / "include"
    shutil.copytree(installed, folder, copy_function=os.symlink)
    header = installed / "torch" / "headeronly" / "version.h"
    users = [f for f in (installed / "torch").rglob("*.h") if NEWER in f.read_text(errors="replace")]
    for file in (header, *users):
        copy = folder / file.relative_to(installed)
        copy.unlink()
        copy.write_text(file.read_text().replace(NEWER, "IFDD_TEST_OTHER_NAME"))
    return folder


@pytest.mark.slow
@needs_build
def test_newer_macros_are_found(tmp_path: Path, older: Path) -> None:
    root = tmp_path / "checkout"
    for name in ("csrc", "tests/emulator/include"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("CMakeLists.txt", "ifdd_kernels/_version.py"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    found = checks(older, nvcc=False, root=root)
    sources = {check.source for check in found}
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp")} <= sources
    assert {str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu")} <= sources
    few = [c for c in found if c.source in ("csrc/cpu/lifting_loss.cpp", "csrc/cuda/lifting_loss.cu")]
    assert run(few, 1) == {}
    for name in ("csrc/cpu/tensor.h", "csrc/cuda/common/device.h"):
        header = root / name
        text = header.read_text()
        assert " TORCH_ERROR_CODE_CHECK(" in text
        header.write_text(text.replace("TORCH_ERROR_CODE_CHECK(", f"{NEWER}("))
    wrong = run(few, 1)
    assert set(wrong) == {"csrc/cpu/lifting_loss.cpp", "csrc/cuda/lifting_loss.cu"}
    assert all(NEWER in message for message in wrong.values())


def test_the_oldest_is_that_of_the_metadata() -> None:
    assert f"torch>={oldest_version().removesuffix('.0')}" in (ROOT / "pyproject.toml").read_text()


def test_other_folders_are_no_headers(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no headers of torch"):
        version_of(tmp_path)


def wheel(folder: Path, version: str = VERSION) -> Path:
    path = folder / f"torch-{version}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch/include/torch/headeronly/version.h", f'#define TORCH_VERSION "{version}"\n')
        archive.writestr("torch/lib/libtorch.so", "x" * 1000)
    return path


def test_headers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch_headers, "_download", lambda v, folder: calls.append(v) or wheel(folder))
    for _ in range(2):
        include = headers(VERSION, tmp_path)
        assert version_of(include) == VERSION
    assert calls == [VERSION]
    assert {p.name for p in tmp_path.iterdir()} == {f"torch-{VERSION}", f"torch-{VERSION}.lock"}


def test_an_interrupted_download_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(version: str, folder: Path) -> Path:
        (folder / "torch" / "include").mkdir(parents=True)
        raise KeyboardInterrupt

    killed = tmp_path / f"torch-{VERSION}-part-killed" / "torch" / "include"
    killed.mkdir(parents=True)
    monkeypatch.setattr(torch_headers, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        headers(VERSION, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"torch-{VERSION}.lock"]
    monkeypatch.setattr(torch_headers, "_download", lambda v, folder: wheel(folder))
    assert version_of(headers(VERSION, tmp_path)) == VERSION


def test_headers_of_another_release_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_headers, "_download", lambda v, folder: wheel(folder, "2.10.0"))
    with pytest.raises(RuntimeError, match=r"holds the headers of torch 2\.10\.0"):
        headers(VERSION, tmp_path)


def _in_another_process(cache: Path) -> None:
    def download(version: str, folder: Path) -> Path:
        with (cache / "calls").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return wheel(folder)

    torch_headers._download = download
    assert version_of(headers(VERSION, cache)) == VERSION


def test_two_processes_download_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_in_another_process, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


@pytest.fixture
def only_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """pip as without any configuration of this machine."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return monkeypatch


def test_nobody_answering_is_no_network(tmp_path: Path, only_index: pytest.MonkeyPatch) -> None:
    only_index.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused
    with pytest.raises(NoNetworkError, match=r"torch 2\.11\.0 cannot be downloaded"):
        headers(VERSION, tmp_path)


def test_other_failures_of_pip_are_errors(tmp_path: Path, only_index: pytest.MonkeyPatch) -> None:
    (tmp_path / "index" / "torch").mkdir(parents=True)
    (tmp_path / "index" / "torch" / "index.html").write_text("<html></html>")
    only_index.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    with pytest.raises(RuntimeError, match=r"the download of torch 2\.11\.0 failed, exit 1") as caught:
        headers(VERSION, tmp_path / "cache")
    assert not isinstance(caught.value, NoNetworkError)


@pytest.mark.parametrize(("required", "word", "code"), [("", "SKIPPED", 0), ("1", "FAILED", 1)])
def test_a_skip_is_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: str, word: str, code: int
) -> None:
    def nothing(version: str) -> Path:
        raise NoNetworkError("nothing answers")

    monkeypatch.setenv("IFDD_REQUIRE_HEADERS", required)
    monkeypatch.setattr(torch_headers, "headers", nothing)
    monkeypatch.setattr(torch_headers, "checks", lambda include, nvcc: [])
    assert torch_headers.main([]) == code
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"!!! {word}: the check against the oldest torch. nothing answers")


def test_a_refused_source_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = torch_headers.Check("csrc/cpu/some.cpp", ("sh", "-c", "echo no such macro >&2; exit 1"), ROOT)
    silent = torch_headers.Check("csrc/cpu/other.cpp", ("sh", "-c", "exit 3"), ROOT)
    right = torch_headers.Check("csrc/cpu/right.cpp", ("true",), ROOT)
    monkeypatch.setattr(torch_headers, "checks", lambda include, nvcc: [refused, silent, right])
    include = torch_headers.installed_include()
    assert torch_headers.main(["--include", str(include)]) == 1
    said = capsys.readouterr().out
    assert "csrc/cpu/some.cpp with the headers of torch" in said
    assert "no such macro" in said
    assert "exit 3" in said
    assert "2 refused" in said
