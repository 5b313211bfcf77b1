"""A digest of the sources a library is built from; setup.py puts it into the library."""

from __future__ import annotations

import hashlib
from pathlib import Path

MARK = b"ifdd-sources:"
"""Stands before the digest in the library."""
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def digest(root: Path) -> str:
    """Of all sources under csrc and of CMakeLists.txt, names included; an editor's leftovers do not count."""
    sources = (file for file in (root / "csrc").rglob("*") if file.suffix in SUFFIXES and file.is_file())
    hashed = hashlib.sha256()
    for file in [root / "CMakeLists.txt", *sorted(sources)]:
        hashed.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()
