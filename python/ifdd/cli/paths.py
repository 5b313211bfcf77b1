"""Files and folders that options name: what is wrong with one is said before any work; nothing is touched."""

from __future__ import annotations

import os
from pathlib import Path

from ifdd.cli._commands import UsageError
from ifdd.text import printable
from ifdd.training.folder import BEST, EXPORTED, LAST

_WEIGHTS = (EXPORTED, BEST, LAST)


def require_file(option: str, path: str | os.PathLike[str]) -> Path:
    """A file that is read.

    Raises:
        UsageError: it is not there; other weights of the same run that are there are named.
    """
    file = Path(path)
    if _is_dir(option, file):
        inside = [name for name in _WEIGHTS if (file / name).is_file()]
        advice = f"; name a file in it, such as {printable(file / inside[0])}" if inside else ""
        raise UsageError(f"{option}: {printable(file)} is a folder{advice}")
    if not file.exists():
        others = (
            [name for name in _WEIGHTS if (file.parent / name).is_file()] if file.name in _WEIGHTS else []
        )
        there = f"; {' and '.join(printable(file.parent / name) for name in others)}" if others else ""
        advice = f"{there} {'are' if len(others) > 1 else 'is'} there" if others else ""
        when = " (a training writes it at its end)" if others and file.name == EXPORTED else ""
        raise UsageError(f"{option}: {printable(file)} does not exist{when}{advice}")
    return file


def require_folder(option: str, path: str | os.PathLike[str]) -> Path:
    """A folder that is read.

    Raises:
        UsageError: it is not there, or is a file.
    """
    folder = Path(path)
    if not _is_dir(option, folder):
        what = "is a file, expected a folder" if folder.exists() else "no such folder"
        raise UsageError(f"{option}: {printable(folder)}: {what}")
    return folder


def require_writable_file(option: str, path: str | os.PathLike[str]) -> None:
    """A file that will be written, or replaced as a whole.

    Raises:
        UsageError: no file can be there, or its folder or the file itself may not be written.
    """
    file = Path(path)
    if _is_dir(option, file):
        raise UsageError(f"{option}: {printable(file)} is a folder")
    there = file.exists()
    # Of a link, the file that it leads to is written.
    folder = (Path(os.path.realpath(file)) if file.is_symlink() else file.absolute()).parent
    if not folder.is_dir():
        raise UsageError(f"{option}: folder {printable(folder)} does not exist")
    if (file.is_file() or not there) and not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: folder {printable(folder)} cannot be written")
    if there and not os.access(file, os.W_OK):
        raise UsageError(f"{option}: {printable(file)} cannot be written")


def require_writable_folder(option: str, path: str | os.PathLike[str]) -> None:
    """A folder that will be made, or receive files.

    Raises:
        UsageError: it is a file, or neither it nor the folder to make it in may be written.
    """
    folder = Path(path)
    if not _is_dir(option, folder) and os.path.lexists(folder):
        raise UsageError(f"{option}: {printable(folder)} is not a folder")
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        raise UsageError(f"{option}: {printable(above)} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: folder {printable(above)} cannot be written")


def _is_dir(option: str, path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        UsageError: no file can have that name, or it may not be looked at.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"{option}: {printable(path)}: {error.strerror}") from None
    return path.is_dir()
