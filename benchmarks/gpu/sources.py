"""Digests of the sources that a result depends on: the same digest, the same code. No torch here."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.suite.place import ROOT

FOLDERS = ("csrc", "ifdd_kernels", "python/ifdd")
SUFFIXES = (".cu", ".cpp", ".h", ".cuh", ".py", ".json")
#: What CUDA kernels are compiled from.
CUDA = ("csrc/cuda", "csrc/common", "csrc/include/ifdd/cuda", "csrc/include/ifdd/accumulate.h")
#: What decides whether the paths of a GPU build, compile and load.
GPU = ("CMakeLists.txt", *CUDA, "ifdd_kernels/triton")


def hash_of(root: Path, names: Sequence[str]) -> str:
    """Of files and of all files in folders, by their paths below ``root``; compiled Python does not count."""
    return _hash(root, (file for name in names for file in _files(root / name)))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def _hash(root: Path, files: Iterable[Path]) -> str:
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()


@functools.cache
def digest(op: str | None = None, root: Path = ROOT) -> str:
    """Of everything that runs on a GPU, or of what an op depends on.

    Carefully: whatever is shared counts for every op; only CUDA files named after another op do not, which
    nothing includes. An op without a CUDA file of its own depends on all of them.
    """
    own = root / "csrc" / "cuda" / f"{op}.cu"

    def counts(file: Path) -> bool:
        if file.suffix not in SUFFIXES or (root / "csrc" / "cpu") in file.parents:
            return False
        other = file.suffix == ".cu" and file.parent == own.parent and file != own
        return not (other and own.exists())

    return _hash(root, (f for name in FOLDERS for f in _files(root / name) if counts(f)))[:16]
