"""Finds the videos that the names on the command line stand for."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ifdd.data.errors import DatasetError, VideoError, reason
from ifdd.data.folder import holds_frames, list_videos
from ifdd.data.textfile import plain, read_bytes
from ifdd.text import one_line, printable


class InputError(ValueError):
    """A list of videos that cannot be read."""


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def find_videos(names: Iterable[str], recursive: bool = False) -> Iterator[tuple[str, VideoError | None]]:
    """Every video that `names` stand for, once, in the order of `names`; with the error that makes it none.

    A name is, in this order: a file, which is a video; a folder of videos; a folder of frames, which is one
    video; a pattern with ``*``, ``?``, ``[...]`` or ``**`` (any folders). Videos of a folder and matches of a
    pattern are sorted by path. A name that exists is never a pattern.

    Args:
        names: as typed.
        recursive: folders in folders count, too: of videos and of frames.
    """
    seen: set[str] = set()
    for name in names:
        for path, error in _expand(name, recursive):
            # However its folder was spelled. A link to a video is a name of its own.
            folder, last = os.path.split(path)
            place = os.path.join(os.path.realpath(folder), last)  # noqa: PTH118 (the last part may be "..")
            if place not in seen:
                seen.add(place)
                yield path, error


def _expand(name: str, recursive: bool) -> list[tuple[str, VideoError | None]]:
    if not name:  # a Path would take it for the folder that the program runs in
        return [(name, VideoError("an empty name stands for no video"))]
    try:
        Path(name).lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that no file can have, a folder that may not be read
        if not glob.has_magic(name):
            return [(name, VideoError(f"{printable(name)}: {reason(error)}"))]
    else:
        return _videos_of(name, recursive)
    if _ADDRESS.match(name):
        return [(name, VideoError(f"{printable(name)}: an address, expected a file; download it first"))]
    if not glob.has_magic(name):
        return [(name, None)]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (a Path would change how names are written)
    if "**" in name:
        found = [path for path in found if not _through_link(path, name.partition("**")[0])]
    if not found:
        return [(name, VideoError(f"{printable(name)}: nothing matches this pattern"))]
    # A pattern with ** finds a folder and what is in it.
    return [video for path in found for video in _videos_of(path, recursive)]


def _through_link(path: str, begin: str) -> bool:
    """Whether a match lies behind a link that the pattern does not name: links may go in circles."""
    depth = len(Path(begin).parts)
    return any(folder.is_symlink() for folder in Path(path).parents if len(folder.parts) > depth)


def _videos_of(name: str, recursive: bool) -> list[tuple[str, VideoError | None]]:
    """The videos of something that exists."""
    if not os.path.isdir(name):  # noqa: PTH112 (names keep the form they were typed in)
        return [(name, None)]
    try:
        if not recursive:
            if videos := _videos_in(name):
                return [(path, None) for path in videos]
            inner = any(_folders(Path(name)))
            more = "; --recursive looks into the folders in it" if inner else ""
            return [(name, VideoError(f"{printable(name)}: no video and no frames in this folder{more}"))]
        found = [path for folder in [name, *_folders(Path(name))] for path in _videos_in(folder)]
    except VideoError as error:
        return [(name, error)]
    if not found:
        return [(name, VideoError(f"{printable(name)}: no video and no frames in this folder"))]
    return [(path, None) for path in sorted(found, key=Path)]


def _videos_in(folder: str) -> list[str]:
    """The videos right in a folder; or the folder, where it is one."""
    return [folder] if holds_frames(folder) else [str(path) for path in list_videos(folder)]


def _folders(folder: Path) -> Iterator[str]:
    """The folders in `folder`, not hidden, at any depth; links are not followed."""
    for place, inner, _ in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (str(Path(place) / name) for name in inner if not (Path(place) / name).is_symlink())


def read_list(path: str) -> list[str]:
    """The lines of a list of videos, ``-`` for standard input, but for empty ones and those that begin with
    #, unless they are the name of something that exists. Encodings and line ends may be those of lists of
    data sets; bytes that are not UTF-8 are kept as they are. Blanks or quotes around a name are removed
    where only the name without them exists.

    Raises:
        InputError: it cannot be read, or names no video.
    """
    try:
        raw = plain(path, sys.stdin.buffer.read()) if path == "-" else read_bytes(Path(path))
    except (OSError, DatasetError) as error:
        raise InputError(one_line(error)) from None
    lines = [os.fsdecode(line) for line in raw.split(b"\n")]
    # A comment, as in lists of data sets; but what `ls` wrote must not lose a video called "#1.mp4".
    names = [
        name
        for name in (_bare(line) for line in lines if line.strip())
        if not name.lstrip().startswith("#") or os.path.lexists(name)
    ]
    if not names:
        raise InputError(f"{printable(path)}: names no video, expected one path per line")
    return names


def _bare(line: str) -> str:
    """A name without what surrounds it in a list, if that is how the file is called."""
    stripped = line.strip()
    names = (line, stripped, stripped.strip("\"'"))
    return next((name for name in names if name and os.path.lexists(name)), line)
