"""The folder of a run: none where nothing was trained."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

LAST = "last.ckpt"
BEST = "best.ckpt"
EXPORTED = "model.safetensors"
SETTINGS = "config.yaml"


@contextlib.contextmanager
def run_folder(out: Path, kept: str) -> Iterator[None]:
    """Makes a folder, and takes back what an error or an interruption leaves in it before it holds ``kept``.

    What was in the folder before stays there, and so do folders above it that were there before.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    before = set(out.iterdir())
    try:
        yield
    except BaseException:
        if not (out / kept).exists():
            for path in set(out.iterdir()) - before:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(
                    missing_ok=True
                )
            with contextlib.suppress(OSError):
                # Not empty: something else was put there meanwhile.
                for folder in missing:
                    folder.rmdir()
        raise
