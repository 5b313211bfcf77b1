"""The folder of a run: files that appear whole, and no folder where nothing was trained."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


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


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is there whole or as it was before.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
