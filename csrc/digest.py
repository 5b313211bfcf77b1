"""A digest of the sources a library is built from; setup.py puts it into the library."""

from __future__ import annotations

import hashlib
from pathlib import Path

MARK = b"ifdd-sources:"
"""Stands before the digest in the library."""


def digest(root: Path) -> str:
    """Of all files under csrc and of CMakeLists.txt, names included."""
    files = [root / "CMakeLists.txt", *sorted(f for f in (root / "csrc").rglob("*") if f.is_file())]
    hashed = hashlib.sha256()
    for file in files:
        if file.suffix not in (".py", ".pyc"):
            hashed.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()
