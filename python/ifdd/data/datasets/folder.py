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


class FolderDataset(SplitDataset):
    """Videos in one folder for each class: `root/happy/a.mp4`, `root/sad/b/0001.jpg` (a folder of frames).

    Folders in between are allowed (`root/happy/person/a.mp4`). If `root` holds the folders `train` and
    `test`, each has the folders of the classes; otherwise both splits are all videos of `root`.

    Args:
        root: the folder.
        split: "train" (random windows, augmentation) or "test"; "validation" is the part that `validation`
            holds out of the training videos.
        class_names: the classes in label order; by default the names of the folders, sorted.
        validation: part of each class held out from training.
        clip_frames: T.
        options: see `VideoDataset`.

    Raises:
        DatasetError: no folders, none with a video, one that is none of `class_names`, or parts of a data set
            by other names.
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
        train, test = (_folders(root / name) for name in _PARTS)
        #: Whether the splits have folders of their own.
        self.divided = divided = bool(train and test)
        top = root / part if divided else root
        # Of all splits together: a label must mean the same in each.
        found = sorted(
            {folder.name for folder in (*train, *test)} if divided else {f.name for f in _folders(root)}
        )
        if not divided and found and {name.lower() for name in found} <= _PART_NAMES:
            raise DatasetError(
                f"{printable(root)}: holds the folders {', '.join(map(printable, found))}; the two parts are "
                "called train and test, and each holds a folder for each class (--validation takes a part of "
                "train)"
            )
        names = tuple(found if class_names is None else class_names)
        if class_names is not None and (unknown := [name for name in found if name not in names]):
            raise DatasetError(
                f"{printable(root)}: folder {unknown[0]!r} is none of the classes {', '.join(names)}"
            )
        if len(names) < 2 or not found:
            here = len(list_videos(root))
            instead = "" if any(root.iterdir()) else ", it is empty"
            if here:
                instead = f" and {counted(here, 'video')}: is the folder above meant?"
            raise DatasetError(
                f"{printable(root)}: expected a folder of videos for each class, found "
                f"{counted(len(found), 'folder')}{instead}"
            )
        videos = []
        remarks = [f"{printable(top)}: both splits are all of its videos (no folders train and test)"]
        if divided or split != "test":
            remarks = []
        for label, name in enumerate(names):
            paths = list(_videos(top / name))
            videos += [Video(path, label) for path in paths]
            if not paths:
                flat = (top / name).is_dir() and _is_video(top / name)
                why = "images, and no folder of frames for each video" if flat else "no video of this class"
                remarks.append(f"{printable(top / name)}: {why}")
        if not videos:
            raise DatasetError(f"no videos: {'; '.join(remarks[-len(names) :])}")
        super().__init__(videos, names, split, validation, clip_frames, remarks, **options)


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
