"""The data set DFEW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ifdd.data import lists
from ifdd.data.datasets import layout, official
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.errors import DatasetError
from ifdd.data.labels import DFEW_CLASSES, FirstLabel
from ifdd.text import printable

if TYPE_CHECKING:
    from typing_extensions import Unpack


class DFEW(SplitDataset):
    """DFEW: 7 basic expressions, 5 folds (Jiang et al., ACM MM 2020).

    Args:
        root: folder that holds `Clip/` and `EmoLabel_DataSplit/`.
        fold: 1 to 5.
        split: "train" or "test" of the fold; "validation" is the part of its training videos that
            `validation` holds out (and that "train" with the same `validation` and `seed` leaves out).
        clips: "16f", face crops interpolated to 16 frames; "native", face crops at the original frame count;
            "original", the video files.
        class_names: `DFEW_CLASSES` in another order, if labels are to be numbered otherwise.
        validation: part of each class held out from training, 0 to below 1.
        soft_labels: labels are the shares of the annotators' votes, float32 (7,), read from
            `Annotation/annotation.csv`.
        first_label: what the first class is numbered in the lists: officially 1, with 0 for clips to leave
            out; "auto" takes that, but refuses labels that look as if they counted from 0.
        clip_frames: T; with the defaults here the published setting.
        options: see `VideoDataset`. `sampling` is "centre" for "16f" (the only window there is) and
            "consecutive" otherwise, as in the original.

    Raises:
        ValueError: an option with a value that is not listed here.
        DatasetError: a list or an annotation is missing, cannot be read, or names a clip without votes.
    """

    def __init__(
        self,
        root: str | Path,
        fold: int = 1,
        split: Split = "train",
        *,
        clips: Literal["16f", "native", "original"] = "16f",
        class_names: Sequence[str] | None = None,
        validation: float = 0.0,
        soft_labels: bool = False,
        first_label: FirstLabel = "auto",
        clip_frames: int = 16,
        **options: Unpack[ClipOptions],
    ) -> None:
        root = layout.folder(root)
        layout.check_fold(fold)
        if clips not in ("16f", "native", "original"):
            raise ValueError(f"clips must be '16f', 'native' or 'original', got {clips!r}")
        part = layout.list_part(split)
        splits = ("EmoLabel_DataSplit", ".")
        file = layout.first_of(
            root,
            [
                f"{top}/{part}{kind}/set_{fold}.csv"
                for top in splits
                for kind in ("(single-labeled)", "_single-labeled")
            ],
        )
        listed = lists.read_dfew(file, first_label)
        self.dropped = listed.dropped
        self.first_label = 0 if first_label == 0 else 1
        votes: dict[int, tuple[float, ...]] = {}
        if soft_labels:
            votes = lists.read_dfew_votes(
                layout.first_of(root, ["Annotation/annotation.csv", "annotation.csv"])
            )
        names, order = layout.class_order(DFEW_CLASSES, class_names)
        copy = {"16f": "clip_224x224_16f", "native": "clip_224x224", "original": "original"}[clips]
        base = layout.first_of(root, [f"Clip/{copy}", copy])
        videos = []
        for entry in listed.entries:
            number = layout.clip_number(entry.name, file)
            soft = None
            if soft_labels:
                if number not in votes:
                    raise DatasetError(f"{printable(file)}: clip {number} has no votes in the annotation")
                soft = tuple(votes[number][order.index(label)] for label in range(len(names)))
            name = f"{number}.mp4" if clips == "original" else f"{number:05d}"
            videos.append(Video(base / name, order[entry.label], soft))
        if options.get("sampling") is None:
            options["sampling"] = "centre" if clips == "16f" else "consecutive"
        remarks = official.subset_remark("DFEW", part, fold, len(videos), file)
        if listed.dropped:
            text = f"{listed.dropped} clips without a single emotion (label 0) are left out"
            remarks.append(f"{printable(file)}: {text}")
        super().__init__(videos, names, split, validation, clip_frames, remarks, **options)
