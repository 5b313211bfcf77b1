"""Digests of the sources that a measurement on a GPU depends on: the same digest, the same code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from benchmarks.place import ROOT

FOLDERS = ("csrc", "ifdd_kernels", "python/ifdd")
SUFFIXES = (".cu", ".cpp", ".h", ".cuh", ".py", ".json")


@functools.cache
def digest(op: str | None = None, root: Path = ROOT) -> str:
    """Of everything that runs on a GPU, or of what an op depends on.

    Carefully: whatever is shared counts for every op; only CUDA files named after another op do not, which
    nothing includes. An op without a CUDA file of its own depends on all of them.
    """
    own = root / "csrc" / "cuda" / f"{op}.cu"
    hashed = hashlib.sha256()
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in SUFFIXES or (root / "csrc" / "cpu") in file.parents:
                continue
            other = file.suffix == ".cu" and file.parent == own.parent and file != own
            if not (other and own.exists()):
                hashed.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()[:16]
