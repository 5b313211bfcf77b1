"""The machine of a check: its device, cores, packages and tools, found without torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass

from benchmarks.gpu import library, sources
from benchmarks.gpu.toolkit import find_tool
from benchmarks.suite import place

PACKAGES = (
    *("torch", "triton", "torchvision", "numpy", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis"),
    *("safetensors", "timm", "cmake", "ninja", "pybind11", "setuptools"),
)
"""Packages of the check and its tests, by the name they are installed under."""
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "git", "nvidia-smi")


@dataclass(frozen=True)
class Machine:
    """The facts that the plan depends on; found without importing torch."""

    device: str = "cuda"
    name: str = "unknown"
    capability: str = "9.0"
    driver: str = ""
    cores: int = 1
    missing: frozenset[str] = frozenset()
    #: Times its usual limit that a stage may take, where the budget is more than one call's.
    patience: float = 1.0

    @property
    def lacks_pytest(self) -> str:
        """Why no test can run; empty if tests can."""
        return "pytest is not installed" if "pytest" in self.missing else ""


def look(device: str) -> Machine:
    """This machine, and which of :data:`PACKAGES` and :data:`TOOLS` it lacks."""
    absent = {name for name in PACKAGES if _version(name) is None}
    # Distributions of a system do not always have metadata.
    absent -= {name for name in absent if importlib.util.find_spec(name.replace("-", "_")) is not None}
    missing = frozenset(absent | {name for name in TOOLS if find_tool(name) is None})
    name, capability, driver = "CPU", "9.0", ""
    if device == "cuda":
        found = _query("name,compute_cap,driver_version")
        name, capability, driver = found if len(found) == 3 else ("unknown GPU", "9.0", "")
    return Machine(device, name, capability, driver, os.cpu_count() or 1, missing)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _query(fields: str) -> list[str]:
    command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    lines = place.output(*command, timeout_s=15).splitlines()
    return [field.strip() for field in lines[0].split(",")] if lines else []


def first_line(machine: Machine) -> dict[str, object]:
    """Where this is: versions by package, the device, and what is missing by name."""
    versions = {name: _version(name) for name in PACKAGES if name not in machine.missing}
    return {
        "device": machine.name,
        "capability": machine.capability if machine.device == "cuda" else None,
        "driver": machine.driver,
        "cores": machine.cores,
        "python": platform.python_version(),
        "versions": versions,
        "missing": sorted(machine.missing),
        "commit": place.commit(),
        "sources": sources.digest(),
        "library": library.find(cuda=machine.device == "cuda").problem or "carried, of these sources",
    }
