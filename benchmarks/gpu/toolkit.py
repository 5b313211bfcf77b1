"""Programs of the CUDA toolkit."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def find_tool(name: str) -> str | None:
    """A program on the path, in ``CUDA_HOME``, or the copy in the Triton package."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    triton = (Path(folder) / "triton" / "backends" / "nvidia" / "bin" for folder in sys.path)
    places = (None, *map(str, (home, *triton)))
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)
