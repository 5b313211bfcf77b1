"""Builds the native library with CMake; everything else is in pyproject.toml.

Environment variables:
    IFDD_NATIVE      0: pure Python; 1: the native library must be built; unset: built if there is a compiler
    IFDD_CUDA        AUTO (default: if there are CUDA sources and nvcc is found), ON or OFF
    IFDD_CUDA_ARCHS  CUDA architectures as CMake writes them, e.g. "90a-real" (default: CMakeLists.txt)
    IFDD_WERROR      1: compiler warnings are errors
    IFDD_SANITIZE    e.g. "address,undefined": build with these sanitizers
    CXX              C++ compiler (default: c++, g++ or clang++)
    CUDACXX, CUDA_HOME, CUDA_PATH  nvcc, or the folder of the CUDA toolkit; the first that is set decides
                     (default: nvcc on the path)
    MAX_JOBS         parallel compilations (default: number of cores, fewer where memory is short)
    DEBUG            1: unoptimised, with debug information
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).parent.resolve()
PACKAGE = "ifdd_kernels"
sys.path.insert(0, str(ROOT / "build_support"))

from toolchain import (  # noqa: E402
    NO_COMPILER,
    BuildError,
    Choice,
    Toolchain,
    build_folder,
    native_choice,
)


def say(message: str) -> None:
    print(f"ifdd-kernels: {message}", file=sys.stderr, flush=True)


def choose() -> Choice:
    """Whether to build the native library; says so on stderr when not."""
    try:
        choice = native_choice()
    except BuildError as error:
        sys.exit(f"ifdd-kernels: {error}")
    if not choice.native:
        cure = " Install a compiler and reinstall to get the native kernels."
        more = cure if choice.reason == NO_COMPILER else ""
        say(f"{choice.reason}: installing pure Python, ops run on the reference.{more}")
    return choice


CHOICE = choose()


def default_jobs() -> int:
    """One compilation a core, but no more than free memory holds: nvcc takes up to 2 GB for a file."""
    cores = os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_kb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return cores
    return max(1, min(cores, free_kb // (2 * 1024**2)))


class Metadata(egg_info):
    """Leaves word in the metadata of why an installation has no native library: pip shows no messages."""

    def run(self) -> None:
        super().run()
        note = Path(self.egg_info) / "native.txt"
        if CHOICE.native:
            note.unlink(missing_ok=True)
        else:
            note.write_text(CHOICE.reason, encoding="utf-8")


class Build(build):
    """Starts from an empty build_lib, so that files deleted from the sources do not live on in wheels."""

    def run(self) -> None:
        if Path(self.build_lib).exists():
            shutil.rmtree(self.build_lib)
        super().run()


class CMakeBuild(build_ext):
    """One CMake build makes every library; they go into the package, in place for editable installs."""

    def run(self) -> None:
        try:
            tools = Toolchain.find()
            cuda = self._cuda(tools)
        except BuildError as error:
            sys.exit(f"ifdd-kernels: {error}")
        sanitize = os.environ.get("IFDD_SANITIZE", "")
        kind = "-".join([sys.implementation.cache_tag, *sanitize.replace(",", " ").split()])
        binary = build_folder(tools.record(), kind)
        debug = self.debug or os.environ.get("DEBUG") == "1"
        options = {
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_MAKE_PROGRAM": tools.ninja,
            "CMAKE_BUILD_TYPE": "Debug" if debug else "Release",
            "IFDD_CUDA": cuda,
            "IFDD_WERROR": "ON" if os.environ.get("IFDD_WERROR") == "1" else "OFF",
            "IFDD_SANITIZE": sanitize,
            "IFDD_SOURCES": runpy.run_path(str(ROOT / "csrc" / "digest.py"))["digest"](ROOT),
        }
        # Unset, the default of CMakeLists.txt holds, and not what an earlier build was given.
        architectures = os.environ.get("IFDD_CUDA_ARCHS")
        settings = [f"-DIFDD_CUDA_ARCHS={architectures}"] if architectures else ["-UIFDD_CUDA_ARCHS"]
        settings += [f"-D{key}={value}" for key, value in options.items()]
        if cuda == "ON" and not os.environ.get("CUDACXX", "").strip():
            # Searching, CMake takes a compiler that does not work for none; of a named one it shows errors.
            settings.append(f"-DCMAKE_CUDA_COMPILER={tools.nvcc}")
        elif (binary / "CMakeCache.txt").is_file() and not _has_cuda(binary):
            settings.append("-UCMAKE_CUDA_COMPILER")  # what was wrong with it may have been cured
        jobs = os.environ.get("MAX_JOBS") or str(default_jobs())
        staged = binary / "installed"
        shutil.rmtree(staged, ignore_errors=True)

        def cmake(*arguments: str) -> None:
            self._cmake(tools.cmake, *arguments, environment=tools.environment())

        cmake("-S", str(ROOT), "-B", str(binary), "-G", "Ninja", *settings)
        if cuda == "AUTO" and tools.nvcc is not None and not _has_cuda(binary):
            say(f"{tools.nvcc} does not work: built without CUDA kernels; IFDD_CUDA=ON shows its errors")
        cmake("--build", str(binary), "--parallel", jobs)
        strip = [] if debug or sanitize else ["--strip"]
        cmake("--install", str(binary), "--prefix", str(staged), *strip)
        destination = (ROOT if self.inplace else Path(self.build_lib).resolve()) / PACKAGE
        self._libraries = [str(_replace(path, destination)) for path in sorted(staged.glob("*.so"))]

    @staticmethod
    def _cuda(tools: Toolchain) -> str:
        """The value of IFDD_CUDA for CMake; what is wrong with the CUDA compiler is said here."""
        wanted = os.environ.get("IFDD_CUDA") or "AUTO"
        if tools.nvcc is not None or wanted not in ("AUTO", "ON"):
            return wanted
        if wanted == "ON":
            raise BuildError(f"IFDD_CUDA=ON, but no CUDA compiler was found: {tools.without_nvcc}")
        say(f"built without CUDA kernels: {tools.without_nvcc}")
        return "OFF"

    @staticmethod
    def _cmake(program: str, *arguments: str, environment: Mapping[str, str]) -> None:
        try:
            subprocess.run([program, *arguments], check=True, env=environment)
        except (OSError, subprocess.CalledProcessError) as error:
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


def _has_cuda(binary: Path) -> bool:
    """Whether CMake took a CUDA compiler."""
    cache = (binary / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    return found is not None and not found[1].endswith("NOTFOUND")


def _replace(library: Path, folder: Path) -> Path:
    """Puts a library into a folder in one step: processes that run on the one before keep theirs whole."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{library.name}.{os.getpid()}"
    try:
        shutil.copy2(library, beside)
        return beside.replace(folder / library.name)
    finally:
        beside.unlink(missing_ok=True)


setup(
    # No sources here: CMake knows them. The name makes the wheel platform-specific.
    ext_modules=[Extension(f"{PACKAGE}._runtime", [])] if CHOICE.native else [],
    cmdclass={"build": Build, "build_ext": CMakeBuild, "egg_info": Metadata},
)
