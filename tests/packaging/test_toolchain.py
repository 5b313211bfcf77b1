"""The choice of the native build: its programs, their build folder, the needs of isolation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "build_support"
pytestmark = pytest.mark.skipif(not SUPPORT.exists(), reason="needs a checkout")

#: Variables that would decide in place of what a test puts on the path.
DECIDING = (
    "CXX",
    "CUDACXX",
    "CUDA_HOME",
    "CUDA_PATH",
    "IFDD_NATIVE",
    "IFDD_CUDA",
    "IFDD_CUDA_ARCHS",
    "CXXFLAGS",
)


def program(folder: Path, name: str, version: str = "1.0", body: str = "") -> Path:
    """A program that has a version and does nothing else, unless it is given a body."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{name} {version}" && exit 0\n{body}\n')
    file.chmod(0o755)
    return file


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SUPPORT))
    monkeypatch.delitem(sys.modules, "toolchain", raising=False)
    import toolchain as module

    monkeypatch.delitem(sys.modules, "toolchain")
    return module


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with a compiler, cmake and ninja: the whole path."""
    for name in ("c++", "cmake", "ninja"):
        program(tmp_path / "bin", name)
    for name in DECIDING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def other_toolkit(change: str, tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes one thing that a build depends on."""
    if change == "another CXX":
        monkeypatch.setenv("CXX", str(program(tools.parent / "own", "clang++")))
    elif change == "another compiler behind the same name":
        (tools / "c++").rename(tools / "g++-12")
        (tools / "c++").symlink_to(tools / "g++-12")
    elif change == "flags":
        monkeypatch.setenv("CXXFLAGS", "-march=native")
    elif change == "nvcc on the path":
        program(tools, "nvcc")
    elif change == "nvcc by CUDA_HOME":
        program(tools.parent / "cuda" / "bin", "nvcc")
        monkeypatch.setenv("CUDA_HOME", str(tools.parent / "cuda"))
    elif change == "another ninja":
        program(tools.parent / "first", "ninja")
        monkeypatch.setenv("PATH", f"{tools.parent / 'first'}{os.pathsep}{tools}")
    else:
        name, _, version = change.partition(" ")
        program(tools, name, version)


@pytest.mark.parametrize(
    "change",
    [
        *("another CXX", "another compiler behind the same name", "flags"),
        *("nvcc on the path", "nvcc by CUDA_HOME", "another ninja"),
        *("c++ 2.0", "cmake 2.0", "ninja 2.0"),
    ],
)
def test_another_toolchain_has_another_build_folder(
    change: str, toolchain: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def folder() -> Path:
        found: Path = toolchain.build_folder(toolchain.Toolchain.find().record(), "kind", tmp_path / "build")
        return found

    before = folder()
    (before / "object.o").touch()
    assert folder() == before, "the same toolchain builds on"
    assert (before / "object.o").exists()
    other_toolkit(change, tools, monkeypatch)
    after = folder()
    assert after != before
    assert list(after.iterdir()) == [after / toolchain.RECORD], "nothing of the other build"


def test_another_version_of_nvcc_or_torch_has_another_folder(
    toolchain: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tools, "nvcc", "13.0")
    records = [toolchain.Toolchain.find().record()]
    program(tools, "nvcc", "13.1")
    records.append(toolchain.Toolchain.find().record())
    monkeypatch.setattr(toolchain, "find_torch", lambda: toolchain.Torch("/site/torch", "2.99"))
    records.append(toolchain.Toolchain.find().record())
    assert len({json.dumps(record) for record in records}) == 3


def test_folders_of_moved_sources_and_vanished_programs_are_removed(
    toolchain: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builds = tmp_path / "build"
    record = toolchain.Toolchain.find().record()
    kept = toolchain.build_folder(record, "kept", builds)
    monkeypatch.setenv("CXX", str(program(tmp_path / "isolated", "c++")))
    vanished = toolchain.build_folder(toolchain.Toolchain.find().record(), "kind", builds)
    moved = toolchain.build_folder({**record, "source": "/elsewhere"}, "kind", builds)
    cut_off = toolchain.build_folder(record, "cut-off", builds)
    (cut_off / toolchain.RECORD).write_text("{")
    others = [builds / "emulator" / "object.o", builds / "cmake-by-hand" / "CMakeCache.txt"]
    for other in others:
        other.parent.mkdir()
        other.touch()
    shutil.rmtree(tmp_path / "isolated")
    monkeypatch.delenv("CXX")
    assert toolchain.build_folder(record, "kept", builds) == kept
    assert {folder for folder in (kept, vanished, moved, cut_off) if folder.exists()} == {kept}
    assert all(other.exists() for other in others), (
        "only folders that say what they were made with are removed"
    )


@pytest.mark.parametrize("variable", ["CUDACXX", "CUDA_HOME", "CUDA_PATH"])
def test_the_toolkit_that_is_named_is_taken_or_none(
    variable: str, toolchain: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert toolchain.find_nvcc()[0] is None
    program(tools, "nvcc")
    assert toolchain.find_nvcc() == (str(tools / "nvcc"), "")
    own = tmp_path / "own"
    monkeypatch.setenv(variable, str(own / "bin" / "nvcc" if variable == "CUDACXX" else own))
    found, problem = toolchain.find_nvcc()
    assert found is None, "another one than was named"
    assert variable in problem
    assert str(own) in problem
    named = program(own / "bin", "nvcc")
    assert toolchain.find_nvcc() == (str(named), "")
    assert toolchain.Toolchain.find().environment()["CUDACXX"] == str(named)


def test_cmake_runs_with_the_compiler_that_names_the_folder(
    toolchain: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toolchain.Toolchain.find().environment()["CXX"] == str(tools / "c++")
    monkeypatch.setenv("CXX", "c++ -m64")  # CMake takes the flags from there
    found = toolchain.Toolchain.find()
    assert found.compiler == str(tools / "c++")
    assert found.environment()["CXX"] == "c++ -m64"


@pytest.mark.parametrize(
    ("name", "message"), [("cmake", "cmake was not found"), ("ninja", "ninja was not found")]
)
def test_missing_tools_are_named(
    name: str,
    message: str,
    toolchain: ModuleType,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tools / name).unlink()
    own = program(tmp_path / "scripts", name)
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda _: str(own.parent))
    assert toolchain.find_tool(name) == str(own), "that of an environment that is not activated"
    own.unlink()
    with pytest.raises(toolchain.BuildError, match=message):
        toolchain.Toolchain.find()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ["cmake>=3.24", "ninja", "pybind11>=3"]),
        ({"IFDD_NATIVE": "0"}, []),
        ({"PATH": "/nowhere"}, []),
        ({"PATH": "/nowhere", "IFDD_NATIVE": "1"}, "IFDD_NATIVE=1, but no C"),
        ({"IFDD_NATIVE": "yes"}, "must be 0, 1 or unset, got 'yes'"),
        ({"CXX": "no-such-compiler -O2"}, "CXX=no-such-compiler -O2: there is no such program"),
    ],
)
def test_isolated_builds_install_what_they_need(
    variables: dict[str, str],
    expected: list[str] | str,
    toolchain: ModuleType,
    tools: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(toolchain.BuildError) as error:
            toolchain.requirements()
        assert expected in str(error.value)
        return
    assert toolchain.requirements() == expected, "torch is there, so it is not downloaded"
    if expected:
        monkeypatch.setattr(toolchain, "find_torch", lambda: None)
        assert toolchain.requirements() == [*expected, f"torch>={toolchain.oldest_torch()}"]


#: As pip isolates: the environment's folder is taken out of sys.path by a sitecustomize on PYTHONPATH.
ISOLATE = """
import site, sys, sysconfig
for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
    sys.path[:] = [entry for entry in sys.path if entry != place]
"""


def test_an_isolated_build_takes_the_torch_of_the_environment(tmp_path: Path, tools: Path) -> None:
    """And so does CMake's Python, which also finds what was installed for the build alone."""
    (tmp_path / "isolated").mkdir()
    (tmp_path / "isolated" / "sitecustomize.py").write_text(ISOLATE)
    for name in ("pybind11", "cmake", "ninja"):
        (tmp_path / "overlay" / name).mkdir(parents=True)
        (tmp_path / "overlay" / name / "__init__.py").touch()
    metadata = tmp_path / "overlay" / "pybind11-3.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: pybind11\nVersion: 3.0\n")
    code = (
        "import importlib.util as u, json, subprocess, sys; import toolchain as t\n"
        "assert u.find_spec('torch') is None, 'not isolated'\n"
        "found = t.Toolchain.find()\n"
        "query = 'from importlib.util import find_spec as f; '\n"
        'query += \'print(f("torch").origin, f("pybind11").origin)\'\n'
        "command = [sys.executable, '-c', query]\n"
        "seen = subprocess.run(command, env=found.environment(), capture_output=True, text=True)\n"
        "print(json.dumps([found.torch.folder, found.torch.outside, t.requirements(), seen.stdout.split()]))"
    )
    places = (tmp_path / "isolated", tmp_path / "overlay", SUPPORT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONNOUSERSITE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "not isolated" in ran.stderr:
        pytest.skip("torch lies in another folder than this Python's packages")
    assert ran.returncode == 0, ran.stderr
    folder, outside, requirements, seen = json.loads(ran.stdout)
    assert outside
    assert (Path(folder) / "__init__.py").exists()
    assert not [name for name in requirements if name.startswith("torch")]
    assert seen == [f"{folder}/__init__.py", str(tmp_path / "overlay" / "pybind11" / "__init__.py")]


#: Configures nothing, and installs two files; writes down how it was called.
CMAKE = """
echo "$@" >> "$LOG"; echo "CXX=$CXX CUDACXX=$CUDACXX" >> "$LOG"
if [ "$1" = --install ]; then mkdir -p "$4"; echo new > "$4/_ops.so"; echo new > "$4/_runtime.own.so"; fi
if [ "$1" = -S ]; then echo "CMAKE_CUDA_COMPILER:FILEPATH=NOTFOUND" > "$4/CMakeCache.txt"; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with everything that setup.py reads, and hardly anything to build."""
    folder = tmp_path / "checkout"
    shutil.copytree(SUPPORT, folder / "build_support", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "csrc").mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "CMakeLists.txt", "csrc/digest.py"):
        shutil.copy(ROOT / name, folder / name)
    for package in ("ifdd_kernels", "python/ifdd"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    shutil.copy(ROOT / "ifdd_kernels" / "_version.py", folder / "ifdd_kernels")
    (folder / "README.md").write_text("readme")
    return folder


Setup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_setup(checkout: Path) -> Setup:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "setup.py", *arguments],
            cwd=checkout,
            env={**os.environ, "LOG": str(checkout / "log"), **variables},
            capture_output=True,
            text=True,
        )

    return run


def test_builds_in_place(checkout: Path, run_setup: Setup, tools: Path, tmp_path: Path) -> None:
    """A library that runs keeps its file; another Python's module stays; no setting outlives its variable."""
    program(tools, "cmake", body=f'PATH="/usr/bin:/bin"; {CMAKE}')
    program(tmp_path / "cuda" / "bin", "nvcc")
    package, log = checkout / "ifdd_kernels", checkout / "log"
    (package / "_ops.so").write_text("old")
    (package / "_runtime.other.so").write_text("other")
    with (package / "_ops.so").open() as running:
        first = run_setup(
            "build_ext", "--inplace", CUDA_HOME=str(tmp_path / "cuda"), IFDD_CUDA_ARCHS="90a-real"
        )
        assert first.returncode == 0, first.stderr
        assert running.read() == "old"
    assert (package / "_ops.so").read_text() == "new\n"
    assert {file.name for file in package.glob("*.so")} == {"_ops.so", "_runtime.own.so", "_runtime.other.so"}
    assert f"CXX={tools / 'c++'} CUDACXX={tmp_path / 'cuda' / 'bin' / 'nvcc'}" in log.read_text()
    assert "-DIFDD_CUDA_ARCHS=90a-real" in log.read_text()
    assert "nvcc does not work: built without CUDA kernels" in first.stderr
    log.unlink()
    second = run_setup("build_ext", "--inplace")
    assert second.returncode == 0, second.stderr
    assert "built without CUDA kernels: nvcc is not on the path" in second.stderr
    assert "-UIFDD_CUDA_ARCHS" in log.read_text()
    assert "-DIFDD_CUDA=OFF" in log.read_text()
    assert len(list((checkout / "build").glob("cmake-*"))) == 2
    log.unlink()
    insisted = run_setup("build_ext", "--inplace", IFDD_CUDA="ON", CUDA_HOME=str(tmp_path / "cuda"))
    assert insisted.returncode == 0, insisted.stderr
    assert f"-DCMAKE_CUDA_COMPILER={tmp_path / 'cuda' / 'bin' / 'nvcc'}" in log.read_text()
    quoted = run_setup("build_ext", "--inplace", CXX="'g++")
    assert quoted.returncode != 0
    assert "CXX='g++: No closing quotation" in quoted.stderr
    assert "Traceback" not in quoted.stderr
    third = run_setup("build_ext", "--inplace", IFDD_CUDA="ON", CUDA_HOME=str(tmp_path / "none"))
    assert third.returncode != 0
    assert f"IFDD_CUDA=ON, but no CUDA compiler was found: CUDA_HOME={tmp_path / 'none'}" in third.stderr


@pytest.mark.parametrize(
    ("choice", "expected", "note"),
    [
        ("", "no C++ compiler was found", "no C++ compiler was found (c++, g++, clang++)"),
        ("0", "IFDD_NATIVE=0: installing pure Python", "IFDD_NATIVE=0"),
        ("1", "IFDD_NATIVE=1, but no C++ compiler", None),
    ],
)
def test_without_a_compiler(
    choice: str, expected: str, note: str | None, checkout: Path, run_setup: Setup, tools: Path
) -> None:
    """Pure Python with a message and a note in the metadata; an error where native was demanded."""
    (tools / "c++").unlink()
    process = run_setup("build", "egg_info", IFDD_NATIVE=choice)
    assert expected in process.stderr
    assert (process.returncode == 0) is (note is not None), process.stderr
    assert not list(checkout.rglob("*.so"))
    built = (checkout / "build").rglob("__init__.py")
    assert bool(list(built)) is (note is not None)
    notes = [file.read_text() for file in checkout.rglob("native.txt")]
    assert notes == ([note] if note is not None else [])
