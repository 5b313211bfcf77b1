"""The data set MAFW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ifdd.data import lists
from ifdd.data.datasets import layout, official
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.lists import MAFW_CLASSES
from ifdd.data.sampling import SamplingPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MAFW(SplitDataset):
    """MAFW: 11 expressions, 5 folds (Liu et al., ACM MM 2022).

    Args:
        root: folder that holds `data/` and the lists.
        fold: 1 to 5.
        split: "train", "test", or "validation": see `DFEW`.
        clips: "frames", the face crops, or "original", the video files.
        class_names: `MAFW_CLASSES` in another order.
        validation: part of each class held out from training.
        clip_frames: T; the published setting is 32 frames at `stride` 2, the defaults here.
        options: see `VideoDataset`.

    Raises:
        ValueError: an option with a value that is not listed here.
        DatasetError: a list is missing or cannot be read.
    """

    policy = SamplingPolicy(stride=2, short="repeat_each")

    def __init__(
        self,
        root: str | Path,
        fold: int = 1,
        split: Split = "train",
        *,
        clips: Literal["frames", "original"] = "frames",
        class_names: Sequence[str] | None = None,
        validation: float = 0.0,
        clip_frames: int = 32,
        **options: Unpack[ClipOptions],
    ) -> None:
        root = layout.folder(root)
        layout.check_fold(fold)
        if clips not in ("frames", "original"):
            raise ValueError(f"clips must be 'frames' or 'original', got {clips!r}")
        part = layout.list_part(split)
        tops = ("Train & Test Set/single", "label")
        captions = ("no_caption", "with_caption")
        file = layout.first_of(
            root, [f"{top}/{kind}/set_{fold}/{part}.txt" for top in tops for kind in captions]
        )
        names, order = layout.class_order(MAFW_CLASSES, class_names)
        copy = "frames" if clips == "frames" else "clips"
        base = layout.first_of(root, [f"data/{copy}", copy])
        videos = []
        for entry in lists.read_mafw(file):
            number = layout.clip_number(entry.name, file)
            name = f"{number:05d}.mp4" if clips == "original" else f"{number:05d}"
            videos.append(Video(base / name, order[entry.label]))
        remarks = official.subset_remark("MAFW", part, fold, len(videos), file)
        super().__init__(videos, names, split, validation, clip_frames, remarks, **options)
