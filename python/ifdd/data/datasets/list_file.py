"""Videos named by a list file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ifdd.data.datasets import layout
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.lists import Entry, ListFormat, read_list
from ifdd.data.sampling import Short

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ListDataset(SplitDataset):
    """Videos named by a list file: your own, or one made for another project.

    Args:
        list_file: see `ifdd.data.lists.read_list` for the formats.
        class_names: names in label order.
        root: folder that relative names start from; without it, the folder of the list. A name that is only
            digits is also looked for padded to five, and a name without suffix also as `.mp4`.
        split: "train" (random windows, augmentation) or "test"; "validation" is the part that `validation`
            holds out of a training list.
        format, first_label: see `ifdd.data.lists.read_list`.
        strip_prefix: taken off the names, for lists with the absolute paths of another machine.
        validation: part of each class held out from training.
        clip_frames: T.
        short: how short videos are stretched, see `VideoDataset`.
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
        first_label: int = 0,
        strip_prefix: str = "",
        validation: float = 0.0,
        clip_frames: int = 16,
        short: Short = "repeat_last",
        **options: Unpack[ClipOptions],
    ) -> None:
        layout.list_part(split)
        list_file = Path(list_file)
        base = list_file.parent if root is None else layout.folder(root)
        entries = read_list(list_file, class_names, format, first_label)
        videos = [Video(_resolve(base, entry, strip_prefix), entry.label) for entry in entries]
        super().__init__(videos, class_names, split, validation, clip_frames, short, **options)


def _resolve(base: Path, entry: Entry, strip_prefix: str) -> Path:
    name = entry.name.removeprefix(strip_prefix)
    if strip_prefix and name != entry.name:
        name = name.lstrip("/")
    path = base / name
    candidates = [path]
    if name.isascii() and name.isdigit():
        candidates.append(base / name.zfill(5))
    if not path.suffix:
        candidates += [candidate.with_suffix(".mp4") for candidate in tuple(candidates)]
    return next((candidate for candidate in candidates if candidate.exists()), path)
