"""The data set FERV39k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ifdd.data import lists
from ifdd.data.datasets import layout, official
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import ClipOptions, Video
from ifdd.data.lists import FERV39K_CLASSES
from ifdd.data.sampling import SamplingPolicy

if TYPE_CHECKING:
    from typing_extensions import Unpack


class FERV39k(SplitDataset):
    """FERV39k: 7 basic expressions in 22 scenes, one split (Wang et al., CVPR 2022).

    Args:
        root: folder that holds `2_ClipsforFaceCrop/` and `4_setups/`.
        split: "train", "test", or "validation": see `DFEW`.
        class_names: `FERV39K_CLASSES` in another order; `DFEW_CLASSES` for checkpoints of projects that use
            that.
        validation: part of each class held out from training.
        clip_frames: T.
        options: see `VideoDataset`. The published setting is one window, which the original draws at random
            when testing; here it is the centre one.
    """

    policy = SamplingPolicy(short="repeat_each")

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
        file = layout.first_of(
            root, [f"4_setups/All_scenes/{part}_All.csv", f"All_scenes/{part}_All.csv", f"{part}_All.csv"]
        )
        names, order = layout.class_order(FERV39K_CLASSES, class_names)
        base = layout.first_of(root, ["2_ClipsforFaceCrop"])
        videos = [
            Video(base / entry.name.replace("\\", "/"), order[entry.label])
            for entry in lists.read_ferv39k(file)
        ]
        remarks = official.subset_remark("FERV39k", part, 1, len(videos), file)
        super().__init__(videos, names, split, validation, clip_frames, remarks, **options)
