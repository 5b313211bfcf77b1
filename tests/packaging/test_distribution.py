"""The contents of wheels and the sdist, and an installed wheel at work."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from ifdd_kernels import _library
from ifdd_kernels.registry import REGISTRY

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),  # a library is built from nothing: minutes on a busy machine
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs a checkout"),
    # One worker: all builds share build/ and the metadata folder of the checkout.
    pytest.mark.xdist_group("distribution"),
]
native = pytest.mark.skipif(not _library.loaded(), reason=f"native library not loaded: {_library.failure()}")


def python(*arguments: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Runs this Python and returns what it prints."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "MAX_JOBS": "1", **variables},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def build(hook: str, folder: Path, **variables: str) -> Path:
    """Calls a build hook (build_wheel, build_sdist) as pip does without isolation."""
    call = f"import sys; sys.path.insert(0, 'build_support'); import backend; backend.{hook}(sys.argv[1])"
    # As in `make test`, the programs of this environment, and so the build folder of its installation.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    python("-c", call, folder, PATH=path, **variables)
    (archive,) = folder.iterdir()
    return archive


def sources(root: Path, package: str) -> set[str]:
    """The Python files of a package, as paths inside an archive."""
    return {f"{package}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}


PYTHON_FILES = sources(ROOT / "ifdd_kernels", "ifdd_kernels") | sources(ROOT / "python" / "ifdd", "ifdd")
DATA = {"ifdd_kernels/py.typed", "ifdd/py.typed", "ifdd_kernels/measured.json"}


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("pure"), IFDD_NATIVE="0")


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("native"), IFDD_NATIVE="1", IFDD_CUDA="OFF")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", tmp_path_factory.mktemp("sdist"), IFDD_NATIVE="0")


def contents(wheel: Path) -> tuple[set[str], set[str]]:
    """Files of a wheel: the packages', and those of its metadata folder by their name."""
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    return names - metadata, {name.split(".dist-info/")[1] for name in metadata}


def test_pure_wheel(pure_wheel: Path) -> None:
    assert re.fullmatch(r"ifdd_kernels-\d+\.\d+\.\d+-py3-none-any\.whl", pure_wheel.name)
    files, metadata = contents(pure_wheel)
    assert files == PYTHON_FILES | DATA
    assert "licenses/LICENSE" in metadata
    note = zipfile.ZipFile(pure_wheel).read(f"{_dist_info(pure_wheel)}/native.txt").decode()
    assert note == "IFDD_NATIVE=0"
    points = zipfile.ZipFile(pure_wheel).read(f"{_dist_info(pure_wheel)}/entry_points.txt").decode()
    assert "ifdd = ifdd.cli:main" in points


def _dist_info(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def test_dependencies_are_light(pure_wheel: Path) -> None:
    text = zipfile.ZipFile(pure_wheel).read(f"{_dist_info(pure_wheel)}/METADATA").decode()
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:")]
    always = {re.split(r"[\s:;<>=]+", line)[1] for line in required if "extra ==" not in line}
    assert always == {"torch", "numpy", "safetensors"}


@native
def test_native_wheel(native_wheel: Path) -> None:
    assert f"-cp{sys.version_info.major}{sys.version_info.minor}-" in native_wheel.name
    files, metadata = contents(native_wheel)
    assert "native.txt" not in metadata
    libraries = {name for name in files if name.endswith(".so")}
    assert files - libraries == PYTHON_FILES | DATA
    assert {name.split(".")[0] for name in libraries} == {"ifdd_kernels/_ops", "ifdd_kernels/_runtime"}
    assert native_wheel.stat().st_size < 4 * 2**20


@pytest.fixture(scope="module")
def environment(native_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment where only the wheel has the package; everything else comes from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    own = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([own, "-c", query], text=True).strip())
    command = ("-m", "pip", "--python", own, "install", "--no-deps", "--no-index", native_wheel)
    python(*command, cwd=folder, PYTHONPATH="")  # pip would take a checkout named there for the installed one
    # Paths named by a .pth file follow the environment's own.
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path(k) for k in ("purelib", "platlib")}))
    return folder


def in_environment(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True)


@native
@pytest.mark.timeout(1200)
def test_the_installed_wheel_is_in_order_but_not_in_a_checkout(environment: Path, tmp_path: Path) -> None:
    """`ifdd doctor` of the wheel, called in sources that were never built.

    Every op and the network compute what they should; a Python that started in that folder would not find the
    library.
    """
    (tmp_path / "ifdd_kernels").mkdir()
    (tmp_path / "ifdd_kernels" / "__init__.py").touch()
    process = in_environment(environment / "bin" / "ifdd", "doctor", "--device", "cpu", cwd=tmp_path)
    assert process.returncode == 1, process.stdout + process.stderr
    assert f"FAIL  Python started in {tmp_path} imports {tmp_path / 'ifdd_kernels'}" in process.stdout
    assert process.stdout.count("FAIL") == 1, process.stdout
    for name in REGISTRY:
        assert f"ok    {name} against its definition in float64" in process.stdout
    assert "ok    forward and backward pass of a small network" in process.stdout
    assert "native: True" in process.stdout
    assert f"path: {environment}" in process.stdout
    assert "RuntimeWarning" not in process.stderr


@native
@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_op_tests_pass_with_the_installed_wheel(environment: Path, tmp_path: Path) -> None:
    """In a folder without sources."""
    suite = tmp_path / "suite"
    for name in ("pyproject.toml", "tests/conftest.py"):
        (suite / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, suite / name)
    shutil.copytree(ROOT / "tests" / "ops", suite / "tests" / "ops")
    (suite / "tests" / "test_origin.py").write_text(
        "import pathlib, sys, ifdd_kernels\n"
        "def test_origin():\n"
        "    assert pathlib.Path(ifdd_kernels.__file__).is_relative_to(sys.prefix)\n"
        "    assert ifdd_kernels.build_info()['native']\n"
    )
    chosen = ["test_origin.py", *(f"ops/test_{n}.py" for n in ("accuracy", "errors", "pool_tokens_native"))]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in chosen)]
    process = in_environment(environment / "bin" / "python", *command, cwd=suite)
    assert process.returncode == 0, process.stdout + process.stderr
    passed = re.search(r"(\d+) passed", process.stdout)
    assert passed is not None, process.stdout
    # What the library does not cover would be skipped.
    assert int(passed[1]) > 500, process.stdout
    assert "skipped" not in process.stdout, process.stdout


@native
def test_library_keeps_to_the_stable_abi(native_wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch_abi_audit", reason="torch-abi-audit needs Python 3.11")
    (name,) = (n for n in zipfile.ZipFile(native_wheel).namelist() if n.startswith("ifdd_kernels/_ops"))
    library = zipfile.ZipFile(native_wheel).extract(name, tmp_path)
    report = python("-m", "torch_abi_audit.cli", library, "--check", "torch")
    assert re.search(r"Torch ABI:\s+STABLE", report), report
    oldest = re.search(r"Min torch:\s+(\d+)\.(\d+)", report)
    assert oldest is not None, report
    assert (int(oldest[1]), int(oldest[2])) <= (2, 11)


@native
def test_library_has_no_python_symbols_and_no_paths_of_this_machine(
    native_wheel: Path, tmp_path: Path
) -> None:
    (name,) = (n for n in zipfile.ZipFile(native_wheel).namelist() if n.startswith("ifdd_kernels/_ops"))
    content = zipfile.ZipFile(native_wheel).read(name)
    assert b"PyObject" not in content
    assert str(Path(importlib.util.find_spec("torch").origin).parent).encode() not in content
    assert paths_of_sources(content) == set()
    assert paths_of_sources(b"\0/a/b.cpp\0csrc/d.h\0/e/f-1/g.cuh:") == {b"/a/b.cpp", b"/e/f-1/g.cuh"}


def paths_of_sources(content: bytes) -> set[bytes]:
    """Absolute paths of C++ and CUDA files in a library."""
    return set(re.findall(rb"(?<![\w./-])/[\w./+-]+\.(?:h|hpp|cuh|cpp|cc|cu)\b", content))


@pytest.mark.skipif(
    not _library.loaded() or not _library.native_ops("cuda"), reason="this build has no CUDA kernels"
)
def test_a_build_with_cuda_kernels_stays_small_and_has_no_paths(tmp_path: Path) -> None:
    """The installed libraries, deflated as a wheel holds them."""
    libraries = [*(ROOT / "ifdd_kernels").glob("*.so")]
    with zipfile.ZipFile(tmp_path / "wheel", "w", zipfile.ZIP_DEFLATED) as wheel:
        for library in libraries:
            wheel.write(library)
            assert paths_of_sources(library.read_bytes()) == set()
    assert 2**20 < (tmp_path / "wheel").stat().st_size < 20 * 2**20


def test_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    native_sources = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()
    }
    native_sources |= {f"build_support/{name}.py" for name in ("backend", "toolchain")}
    modules = {name.replace("ifdd/", "python/ifdd/", 1) if name.startswith("ifdd/") else name
               for name in PYTHON_FILES | DATA}  # fmt: skip
    needed = {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "CHANGELOG.md", "Makefile"}
    assert needed | native_sources | modules <= members
    unwanted = re.compile(r"\.so$|__pycache__|^build/|^\.venv|^runs/|^\.git/")
    assert not [name for name in members if unwanted.search(name)]
