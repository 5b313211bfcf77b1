"""Choices that were measured once and are kept in files of the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def folder() -> Path | None:
    """The package's folder in the user's cache (``XDG_CACHE_HOME``); None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ifdd_kernels"
    except RuntimeError:
        return None


def file_for(kind: str, *key: object) -> Path | None:
    """Where the choice of a kind (``"products"``) for a key is kept, whether it is there or not."""
    place = folder()
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
    return None if place is None else place / kind / f"{name}.json"


def read(path: Path | None) -> dict[str, Any] | None:
    """The content of a file; None if it is missing or incomplete."""
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def write(path: Path | None, content: dict[str, Any], is_choice: Callable[[dict[str, Any]], bool]) -> bool:
    """Keeps a choice unless another process was first; returns whether a file holds one now.

    A file appears whole or not at all. One that is there and holds a choice stays, so that processes that
    measured at the same time agree if they read it afterwards. A cache that cannot be written is not an
    error: the next process measures again.
    """
    if path is None:
        return False
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        try:
            os.link(temporary, path)
        except OSError:  # a file is there, or the file system has no links
            earlier = read(path)
            if earlier is None or not is_choice(earlier):
                Path(temporary).replace(path)
    except OSError:
        return False
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
    return True
