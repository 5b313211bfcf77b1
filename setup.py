"""Builds the native library with CMake; everything else is in pyproject.toml.

Environment variables:
    IFDD_NATIVE      0: pure Python; 1: the native library must be built; unset: built if there is a compiler
    IFDD_CUDA        AUTO (default: if there are CUDA sources and nvcc is found), ON or OFF
    IFDD_CUDA_ARCHS  CUDA architectures as CMake writes them, e.g. "90a-real" (default: CMakeLists.txt)
    IFDD_WERROR      1: compiler warnings are errors
    IFDD_SANITIZE    e.g. "address,undefined": build with these sanitizers
    MAX_JOBS         parallel compilations (default: number of cores, fewer where memory is short)
    DEBUG            1: unoptimised, with debug information
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "ifdd_kernels"


def find_compiler() -> str | None:
    """The C++ compiler that CMake would take: $CXX or a common name."""
    candidates = (os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++")
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def want_native() -> bool:
    """Whether to build the native library; says so on stderr when not."""
    choice = os.environ.get("IFDD_NATIVE", "").strip()
    if choice not in ("", "0", "1"):
        sys.exit(f"ifdd-kernels: IFDD_NATIVE must be 0, 1 or unset, got {choice!r}")
    if choice == "0":
        print(
            "ifdd-kernels: IFDD_NATIVE=0, installing pure Python; ops run on the reference", file=sys.stderr
        )
        return False
    if find_compiler() is not None:
        return True
    if choice == "1":
        sys.exit("ifdd-kernels: IFDD_NATIVE=1, but no C++ compiler was found ($CXX, c++, g++, clang++)")
    print(
        "ifdd-kernels: no C++ compiler was found ($CXX, c++, g++, clang++): installing pure Python, "
        "ops run on the reference. Install a compiler and reinstall to get the native kernels.",
        file=sys.stderr,
    )
    return False


def default_jobs() -> int:
    """One compilation a core, but no more than free memory holds: nvcc takes up to 2 GB for a file."""
    cores = os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_kb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return cores
    return max(1, min(cores, free_kb // (2 * 1024**2)))


class Build(build):
    """Starts from an empty build_lib, so that files deleted from the sources do not live on in wheels."""

    def run(self) -> None:
        if Path(self.build_lib).exists():
            shutil.rmtree(self.build_lib)
        super().run()


class CMakeBuild(build_ext):
    """One CMake build installs every library into the package (in place for editable installs)."""

    def run(self) -> None:
        # A fixed directory, so that rebuilds are incremental; one per Python and kind of build.
        sanitize = os.environ.get("IFDD_SANITIZE", "")
        kind = "-".join([sys.implementation.cache_tag, *sanitize.replace(",", " ").split()])
        binary = ROOT / "build" / f"cmake-{kind}"
        destination = (ROOT if self.inplace else Path(self.build_lib).resolve()) / PACKAGE
        debug = self.debug or os.environ.get("DEBUG") == "1"
        options = {
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_BUILD_TYPE": "Debug" if debug else "Release",
            "IFDD_CUDA": os.environ.get("IFDD_CUDA", "AUTO"),
            "IFDD_WERROR": "ON" if os.environ.get("IFDD_WERROR") == "1" else "OFF",
            "IFDD_SANITIZE": sanitize,
            "IFDD_SOURCES": runpy.run_path(str(ROOT / "csrc" / "digest.py"))["digest"](ROOT),
        }
        if architectures := os.environ.get("IFDD_CUDA_ARCHS"):
            options["IFDD_CUDA_ARCHS"] = architectures
        jobs = os.environ.get("MAX_JOBS") or str(default_jobs())
        strip = [] if debug or sanitize else ["--strip"]
        self._cmake(
            "-S", str(ROOT), "-B", str(binary), "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())
        )
        self._cmake("--build", str(binary), "--parallel", jobs)
        self._cmake("--install", str(binary), "--prefix", str(destination), *strip)
        self._libraries = [str(path) for path in sorted(destination.glob("*.so"))]

    @staticmethod
    def _cmake(*arguments: str) -> None:
        try:
            subprocess.run(["cmake", *arguments], check=True)
        except FileNotFoundError:
            sys.exit(
                "ifdd-kernels: cmake was not found. `pip install cmake ninja pybind11` before "
                "`pip install --no-build-isolation`, or set IFDD_NATIVE=0 for pure Python."
            )
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"ifdd-kernels: the native build failed ({error}); the compiler's messages are above. "
                "IFDD_NATIVE=0 installs pure Python."
            )

    def get_outputs(self) -> list[str]:
        return getattr(self, "_libraries", [])

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


setup(
    # No sources here: CMake knows them. The name makes the wheel platform-specific.
    ext_modules=[Extension(f"{PACKAGE}._runtime", [])] if want_native() else [],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
