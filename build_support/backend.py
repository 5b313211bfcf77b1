"""setuptools as the build backend, which asks for what this build needs and no more.

``pip install .`` without ``--no-build-isolation`` builds with only what the backend asks for: setuptools
alone for pure Python; CMake, Ninja and pybind11 for the native library, and torch only where there is none to
build against.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import toolchain
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """setuptools' requirements and those of the native library."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """As for a wheel."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]


def _requirements() -> list[str]:
    try:
        return toolchain.requirements()
    except toolchain.BuildError as error:
        sys.exit(f"ifdd-kernels: {error}")
