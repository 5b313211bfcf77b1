"""A folder with a folder of videos for each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ifdd.data.datasets import layout
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.errors import DatasetError, VideoError
from ifdd.data.folder import VIDEO_SUFFIXES, holds_frames, list_videos
from ifdd.text import counted, printable

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PARTS = ("train", "test")
_PART_NAMES = frozenset({*_PARTS, "training", "testing", "val", "valid", "validation", "dev"})
"""Folders of these names alone are parts of a data set, not classes."""
_FLAT = "images, and no folder of frames for each video"


class FolderDataset(SplitDataset):
    """Videos in one folder for each class: `root/happy/a.mp4`, `root/sad/b/0001.jpg` (a folder of frames).

    Folders in between are allowed (`root/happy/person/a.mp4`). If `root` holds the folders `train` and
    `test`, each has the folders of the classes; otherwise both splits are all videos of `root`. A folder
    without a video is left out with a warning, unless `class_names` holds it.

    Args:
        root: the folder.
        split: "train" (random windows, augmentation) or "test"; "validation" is the part that `validation`
            holds out of the training videos.
        class_names: the classes in label order, in any case; by default the names of the folders that hold a
            video, sorted.
        validation: part of each class held out from training.
        clip_frames: T.
        options: see `VideoDataset`.

    Raises:
        DatasetError: fewer than two folders with a video, one that is none of `class_names`, two that differ
            in case only, or parts of a data set by other names.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        *,
        class_names: Sequence[str] | None = None,
        validation: float = 0.0,
        clip_frames: int = 16,
        **options: Unpack[ClipOptions],
    ) -> None:
        root = layout.folder(root)
        part = layout.list_part(split)
        parts = {name: _folders(root / name) for name in _PARTS}
        #: Whether the splits have folders of their own.
        self.divided = divided = all(parts.values())
        top = root / part if divided else root
        tops = parts if divided else {part: _folders(root)}
        present = sorted({folder.name for folders in tops.values() for folder in folders})
        if not divided and present and {name.lower() for name in present} <= _PART_NAMES:
            raise DatasetError(
                f"{printable(root)}: holds the folders {', '.join(map(printable, present))}; the two parts "
                "are called train and test, and each holds a folder for each class (--validation takes a "
                "part of train)"
            )
        by_name = {name: _by_name(folders) for name, folders in tops.items()}
        # Of all parts together: a label must mean the same in each.
        folders = [folder for of_part in by_name.values() for folder in of_part.values()]
        names = _with_videos(folders) if class_names is None else tuple(class_names)
        wanted = {name.lower() for name in names}
        remarks = []
        for folder in folders:
            if folder.name.lower() in wanted:
                continue
            if next(_videos(folder), None) is not None:
                raise DatasetError(
                    f"{printable(root)}: folder {folder.name!r} is none of the classes {', '.join(names)}"
                )
            why = _FLAT if _is_video(folder) else "no video in it"
            remarks.append(f"{printable(folder)}: {why}, so it is not a class and is left out")
        if len(names) < 2 or not folders:
            here = len(list_videos(root))
            instead = "" if any(root.iterdir()) else ", it is empty"
            if here:
                instead = f" and {counted(here, 'video')}: is the folder above meant?"
            left_out = f" ({'; '.join(remarks)})" if remarks else ""
            raise DatasetError(
                f"{printable(root)}: expected a folder of videos for each class, found "
                f"{counted(len(names) if folders else 0, 'folder')}{instead}{left_out}"
            )
        if not divided and split == "test":
            remarks.append(f"{printable(top)}: both splits are all of its videos (no folders train and test)")
        videos = []
        for label, name in enumerate(names):
            found = by_name[part].get(name.lower())
            paths = [] if found is None else list(_videos(found))
            videos += [Video(path, label) for path in paths]
            if found is not None and not paths and _is_video(found):
                remarks.append(f"{printable(found)}: {_FLAT}")
        if not videos:
            nothing = f"{printable(top)}: no videos of {', '.join(map(printable, names))}"
            raise DatasetError("; ".join([nothing, *remarks]))
        self._top = top
        super().__init__(videos, names, split, validation, clip_frames, remarks, **options)

    def _called(self) -> str:
        return printable(self._top)


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names in small letters, in which classes are compared.

    Raises:
        DatasetError: two names are the same but for case.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        other = found.setdefault(folder.name.lower(), folder)
        if other is not folder:
            raise DatasetError(
                f"{printable(folder.parent)}: folders {other.name!r} and {folder.name!r} differ in case "
                "only; a class has one folder"
            )
    return found


def _with_videos(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the folders that hold a video, sorted; those of several parts once, as in the first."""
    names: dict[str, str] = {}
    for folder in folders:
        if folder.name.lower() not in names and next(_videos(folder), None) is not None:
            names[folder.name.lower()] = folder.name
    return tuple(sorted(names.values()))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _videos(folder: Path) -> Iterator[Path]:
    """Videos and folders of frames below a folder, sorted."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DatasetError(f"{printable(folder)}: cannot list the folder ({error.strerror})") from None
    for path in paths:
        if path.is_dir():
            if _is_video(path):
                yield path
            elif not path.is_symlink():  # which could lead back here
                yield from _videos(path)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield path


def _is_video(folder: Path) -> bool:
    try:
        return holds_frames(folder)
    except VideoError as error:
        raise DatasetError(str(error)) from None
