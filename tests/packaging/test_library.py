"""Loading of the native library and what is said about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
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
    """The answer of a fresh process that finds the package in ``path``."""
    process = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path), **variables},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result: dict[str, object] = json.loads(process.stdout.splitlines()[-1])
    return {**result, "stderr": process.stderr}


@pytest.fixture
def python_only(tmp_path: Path) -> Path:
    """Sources with the Python files of the package and nothing native."""
    (tmp_path / "setup.py").touch()
    (tmp_path / "csrc").mkdir()
    shutil.copytree(PACKAGE, tmp_path / "ifdd_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def copy_of_package(folder: Path, library: bytes | None = None) -> Path:
    """A folder that Python takes for the package, with a library or without."""
    package = folder / "ifdd_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if library is not None:
        (package / "_ops.so").write_bytes(library)
    return package


def checkout_without_library(folder: Path) -> Path:
    """A copy of the package in sources that were never built."""
    (folder / "csrc").mkdir(parents=True)
    (folder / "setup.py").touch()
    return copy_of_package(folder)


def test_sources_that_hide_an_installed_library_say_so_at_import(python_only: Path, tmp_path: Path) -> None:
    """As after a plain `pip install .`, where Python starts in the checkout; the ops run all the same."""
    installed = copy_of_package(tmp_path / "site", b"library")
    result = probe(python_only, PYTHONPATH=os.pathsep.join(map(str, (python_only, installed.parent))))
    info = result["info"]
    assert info["native"] is False
    assert info["path"] is None
    assert info["folder"] == str(python_only / "ifdd_kernels")
    assert info["cpu_ops"] == []
    assert "instruction_set" not in info
    for text in (info["reason"], result["refusal"], result["failure"], result["stderr"]):
        assert f"Python imported {python_only / 'ifdd_kernels'}" in text
        assert f"hides {installed}, which has one" in text
        assert f"take {python_only} off PYTHONPATH" in text
        assert "`pip install --no-build-isolation -e .`" in text
    assert str(result["stderr"]).count("RuntimeWarning") == 1


def test_unloadable_library_is_reported_once_not_raised(python_only: Path) -> None:
    (python_only / "ifdd_kernels" / "_ops.so").write_bytes(b"not a library")
    result = probe(python_only)
    assert result["info"]["native"] is False
    assert "_ops.so does not load with torch" in result["failure"]
    assert "-e ." in result["refusal"]
    assert str(result["stderr"]).count("_ops.so does not load with torch") == 1


def start_in(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes a folder the first that Python looks in; returns the cure."""
    entry = str(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if way == "current folder":
        monkeypatch.chdir(folder)
        entry, cure = "", "start Python in another folder"
    elif way == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}{folder}")
        cure = f"take {folder} off PYTHONPATH"
    else:
        cure = f"take {folder} off sys.path"
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    return cure


@pytest.mark.parametrize("way", ["current folder", "PYTHONPATH", "sys.path"])
@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_the_cure_fits_the_way(way: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkout = checkout_without_library(tmp_path / "checkout")
    second = checkout_without_library(tmp_path / "second")
    built = copy_of_package(tmp_path / "site", b"library")
    if kind == "editable":

        class Finder:
            @classmethod
            def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
                return spec_from_file_location(name, built / "__init__.py")

        Finder.__module__ = "__editable___ifdd_kernels_1_0_finder"
        places, meta = [str(second.parent)], [PathFinder, Finder]
    else:
        places, meta = [str(second.parent), str(built.parent)], [PathFinder]
    monkeypatch.setattr(sys, "meta_path", meta)
    monkeypatch.setattr(sys, "path", places)
    cure = start_in(checkout.parent, way, monkeypatch)
    state = _library._load(checkout)
    assert (state.path, state.lost, state.warn) == (None, True, True)
    assert f"hides {built}, which has one; {cure}, or run `pip install" in state.reason
    (checkout / "_ops.so").write_bytes(b"not a library")
    state = _library._load(checkout)
    assert (state.path, state.lost, state.warn) == (None, True, True)
    assert f"and hides {built}, which has a library, too; {cure}" in state.reason


@pytest.mark.parametrize(
    ("note", "lost", "warns"),
    [("IFDD_NATIVE=0", False, False), ("no C++ compiler was found (c++)", False, True), (None, True, True)],
)
def test_a_copy_without_a_library(
    note: str | None, lost: bool, warns: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only where pure Python was asked for nothing is said; a library that nobody left out is lost."""
    package = copy_of_package(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    if note is not None:
        metadata = tmp_path / "ifdd_kernels-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Name: ifdd-kernels\nVersion: 1.0\n")
        (metadata / "native.txt").write_text(note)
    state = _library._load(package)
    assert (state.path, state.lost, state.warn) == (None, lost, warns)
    assert f"no _ops*.so in {package}" in state.reason
    assert "-e ." in state.reason
    assert (note or "not installed as pure Python") in state.reason


@pytest.mark.parametrize(("of", "lost"), [("these sources", False), ("others", True), ("nothing", True)])
def test_an_editable_installation_as_pure_python(
    of: str, lost: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its metadata lie among the installed packages and name the checkout, whose path has a space here."""
    package = checkout_without_library(tmp_path / "check out")
    metadata = tmp_path / "site" / "ifdd_kernels-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: ifdd-kernels\nVersion: 1.0\n")
    (metadata / "native.txt").write_text("IFDD_NATIVE=0")
    if of != "nothing":
        source = package.parent if of == "these sources" else tmp_path
        origin = {"url": source.as_uri(), "dir_info": {"editable": True}}
        (metadata / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(sys, "path", [str(metadata.parent)])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    state = _library._load(package)
    assert (state.path, state.lost, state.warn) == (None, lost, lost)
    assert ("because of IFDD_NATIVE=0" in state.reason) is not lost


def test_failure_of_this_process_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = checkout_without_library(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(_library, "_state", None)
    monkeypatch.setattr(_library, "FOLDER", package)
    with pytest.warns(RuntimeWarning, match=f"no _ops.*so in {package}: it was never built") as warned:
        answers = [_library.loaded(), _library.load()]
    assert answers == [False, False]
    assert len(warned) == 1
    assert "it was never built" in _library.failure()
    assert ifdd_kernels.build_info()["native"] is False
    assert _library.problems(tmp_path) == [_library.failure()]


def test_a_folder_whose_copy_would_be_imported_without_a_library_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`ifdd` itself starts elsewhere and has its library: the folder it is called in is looked at."""
    monkeypatch.setattr(_library, "_state", _library._State(PACKAGE / "_ops.so", ""))
    monkeypatch.setattr(_library, "_stale", lambda library: "")
    assert _library.problems(tmp_path) == []
    assert _library.problems(PACKAGE.parent) == []
    package = checkout_without_library(tmp_path / "checkout")
    (problem,) = _library.problems(package.parent)
    assert problem.startswith(f"Python started in {package.parent} imports {package}, which has no native")
    (package / "_ops.so").touch()
    assert _library.problems(package.parent) == []


def test_a_library_of_other_sources_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = checkout_without_library(tmp_path)
    library = package / "_ops.so"
    monkeypatch.setattr(_library, "FOLDER", package)
    monkeypatch.setattr(_library, "_state", _library._State(library, ""))
    library.write_bytes(b"ifdd-sources:")
    assert _library.problems(tmp_path) == [], "no sources that could tell"
    rule = "MARK = b'ifdd-sources:'\ndef digest(root): return root.joinpath('csrc', 'a.cpp').read_text()"
    (tmp_path / "csrc" / "digest.py").write_text(rule)
    (tmp_path / "csrc" / "a.cpp").write_text("first")
    library.write_bytes(b"\x7fELF..ifdd-sources:first\0..")
    assert _library.problems(tmp_path) == []
    (tmp_path / "csrc" / "a.cpp").write_text("second")
    (problem,) = _library.problems(tmp_path)
    assert problem.startswith(f"{library} was built from other sources than {tmp_path / 'csrc'}; run `pip")


def test_each_python_takes_its_own_runtime_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two versions share an editable checkout: the other's module is not loaded, but named."""
    monkeypatch.setattr(_library, "FOLDER", tmp_path)
    (tmp_path / "_runtime.cpython-27-other.so").write_bytes(b"of another Python")
    info, reason = _library.runtime_info()
    assert info == {}
    assert (
        f"for Python {sys.version_info[0]}.{sys.version_info[1]} (there: _runtime.cpython-27-other.so)"
        in reason
    )
    own = tmp_path / f"_runtime{EXTENSION_SUFFIXES[0]}"
    own.write_bytes(b"not a module")
    info, reason = _library.runtime_info()
    assert info == {}
    assert reason.startswith(f"{own} does not load: ")
    built = _library._runtime_in(PACKAGE)
    if built is not None:
        shutil.copy(built, own)
        info, reason = _library.runtime_info()
        assert reason == ""
        assert info["torch_target"] == "2.11"


@needs_native
def test_what_runs_is_known_without_the_runtime_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that has no module of its own computes as fast: the library itself is asked."""
    whole = ifdd_kernels.build_info()
    assert whole["runtime_reason"] == ""
    monkeypatch.setattr(_library, "runtime_info", lambda: ({}, "none"))
    bare = ifdd_kernels.build_info()
    assert bare["runtime_reason"] == "none"
    for name in ("instruction_set", "matrix_tiles", "products"):
        assert bare[name] == whole[name]
    assert "compiler" not in bare


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


def asked_of_the_module(key: str, **environment: str) -> str:
    """An entry of the module's build information, which needs no torch, in another environment."""
    runtime = _library._runtime_in(PACKAGE)
    assert runtime is not None, ifdd_kernels.build_info()["runtime_reason"]
    code = (
        "import importlib.util as u, sys; spec = u.spec_from_file_location('_runtime', sys.argv[1]);"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module);"
        "print(module.build_info()[sys.argv[2]])"
    )
    command = [sys.executable, "-c", code, str(runtime), key]
    return subprocess.check_output(command, env={**os.environ, **environment}, text=True).strip()


@needs_native
def test_environment_lowers_the_instruction_set() -> None:
    def used(wanted: str) -> str:
        return asked_of_the_module("instruction_set", IFDD_CPU_ISA=wanted)

    info = ifdd_kernels.build_info()
    assert used(info["instruction_sets"][0]) == info["instruction_sets"][0]
    if "IFDD_CPU_ISA" not in os.environ:
        assert used("no-such-set") == info["instruction_set"]


@needs_native
def test_environment_chooses_the_matrix_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IFDD_CPU_TILES", raising=False)
    monkeypatch.delenv("IFDD_CPU_ISA", raising=False)
    lowest = ifdd_kernels.build_info()["instruction_sets"][0]

    def used(**environment: str) -> str:
        return asked_of_the_module("matrix_tiles", **environment)

    own = used()
    assert own == "used" or re.fullmatch(r"off \(.+\)", own)
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags is not None and "amx_bf16" not in flags[1].split():
        assert own.startswith(("off (this CPU has none)", "off (not compiled in: "))
    assert used(IFDD_CPU_TILES="") == own
    assert used(IFDD_CPU_TILES="off") == "off (IFDD_CPU_TILES is set)"
    for isa in ({}, {"IFDD_CPU_ISA": lowest}):
        assert used(IFDD_CPU_TILES="emulated", **isa) == "emulated (IFDD_CPU_TILES is set)"
    unknown = used(IFDD_CPU_TILES="on")
    assert unknown == f"{own}; IFDD_CPU_TILES: expected 'off' or 'emulated', got 'on': ignored"
    if own == "used":
        assert used(IFDD_CPU_ISA="x86-64-v4") == "off (IFDD_CPU_ISA is set)"
