"""Videos named by a list file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ifdd.data.datasets import layout
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.foreign_lists import Entry, ListFormat, read_listing
from ifdd.data.labels import FirstLabel
from ifdd.data.locate import Locator, path_map
from ifdd.text import printable

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ListDataset(SplitDataset):
    """Videos named by a list file: your own, or one made for another project.

    Args:
        list_file: see `ifdd.data.foreign_lists.read_listing` for the forms.
        class_names: names in label order.
        root: folder that relative names start from; without it, the folder of the list. A name that is only
            digits is also looked for padded to five, one without suffix also as a video file, one of a video
            also as a folder of frames without the suffix, and one with backslashes also with slashes.
        split: "train" (random windows, augmentation) or "test"; "validation" is the part that `validation`
            holds out of a training list.
        format, first_label, path_column, label_column, companions, faults: see
            `ifdd.data.foreign_lists.read_listing`.
        strip_prefix: taken off the names, for lists with the absolute paths of another machine.
        path_map: "OLD=NEW", one or several: names that begin with the folder OLD begin with NEW instead.
        validation: part of each class held out from training.
        clip_frames: T.
        options: see `VideoDataset`.
    """

    def __init__(
        self,
        list_file: str | Path,
        class_names: Sequence[str],
        root: str | Path | None = None,
        split: Split = "train",
        *,
        format: ListFormat = "auto",
        first_label: FirstLabel = "auto",
        path_column: str | None = None,
        label_column: str | None = None,
        companions: Sequence[str | Path] = (),
        strip_prefix: str = "",
        path_map: str | Sequence[str] | None = None,
        faults: list[str] | None = None,
        validation: float = 0.0,
        clip_frames: int = 16,
        **options: Unpack[ClipOptions],
    ) -> None:
        layout.list_part(split)
        self._file = list_file = Path(list_file)
        base = list_file.parent if root is None else layout.folder(root)
        listing = read_listing(
            list_file,
            class_names,
            format,
            first_label,
            path_column=path_column,
            label_column=label_column,
            companions=[Path(other) for other in companions],
            faults=faults,
        )
        self.first_label = listing.first
        self._locator = Locator(base, list_file.parent, strip_prefix, _pairs(path_map))
        self._entries: dict[Path, Entry] = {}
        videos = []
        for entry in listing.entries:
            video = Video(self._locator.find(entry), entry.label)
            self._entries[video.path] = entry
            videos.append(video)
        super().__init__(videos, class_names, split, validation, clip_frames, listing.remarks, **options)

    def _called(self) -> str:
        return printable(self._file)

    def _advice(self, missing: Sequence[Video], found: Sequence[Video]) -> str:
        entries = ([self._entries[video.path] for video in videos] for videos in (missing, found))
        return self._locator.advice(*entries)


def _pairs(values: str | Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    try:
        return path_map(values)
    except ValueError as error:
        raise ValueError(f"path_map {error}") from None
