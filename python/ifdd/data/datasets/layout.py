"""Layout of the data sets with a training and a test list: their folders, names and parts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ifdd.data.datasets.videos import ClipOptions, Video, VideoDataset
from ifdd.data.errors import DatasetError, DatasetWarning
from ifdd.data.lists import hold_out
from ifdd.data.sampling import SamplingPolicy
from ifdd.text import printable

if TYPE_CHECKING:
    from typing_extensions import Unpack

Split = Literal["train", "validation", "test"]


class SplitDataset(VideoDataset):
    """One part of a data set that comes as a training and a test list.

    Args:
        videos: those of the list that `list_part` names.
        class_names: names in label order.
        split: "train" (random windows, augmentation), "test", or "validation", the part of the training list
            that "train" with the same `validation` and seed leaves out.
        validation: part of each class held out from training, 0 to below 1.
        clip_frames, options: see `VideoDataset`; what is not given is as in `policy`.
        remarks: what is worth knowing about the list; each is a warning, too, and so is a class without a
            video.

    Raises:
        ValueError: "validation" of a training list that holds nothing out, or another option is not usable.
    """

    #: How windows are taken in the published setting.
    policy = SamplingPolicy()
    #: Number of the first class in the list.
    first_label = 0

    def __init__(
        self,
        videos: Sequence[Video],
        class_names: Sequence[str],
        split: Split,
        validation: float,
        clip_frames: int,
        remarks: Sequence[str] = (),
        **options: Unpack[ClipOptions],
    ) -> None:
        self.remarks = tuple(remarks)
        for remark in self.remarks:
            warnings.warn(remark, DatasetWarning, stacklevel=3)
        present = {video.label for video in videos}
        #: Classes of which the list has no video.
        self.missing_classes = tuple(name for k, name in enumerate(class_names) if k not in present)
        if self.missing_classes and videos:
            names = ", ".join(map(printable, self.missing_classes))
            kind = "test" if split == "test" else "training"
            warnings.warn(f"{self._called()}: no {kind} video of {names}", DatasetWarning, stacklevel=3)
        numbers: Sequence[int] = range(len(videos))
        if split != "test":
            kept, held = hold_out([video.label for video in videos], validation, options.get("seed", 0))
            if split == "validation" and not held:
                raise ValueError(
                    f"split 'validation' needs a part of the training set, got validation={validation}"
                )
            # Before any is left out: the parts stay the same when videos are missing.
            numbers = kept if split == "train" else held
            videos = [videos[index] for index in numbers]
        options.setdefault("stride", self.policy.stride)
        if options.get("short") is None:
            options["short"] = self.policy.short
        super().__init__(
            videos,
            class_names,
            training=split == "train",
            clip_frames=clip_frames,
            held_out=split == "validation",
            numbers=numbers,
            **options,
        )


def list_part(split: str) -> str:
    """The list that a split is read from, "train" or "test"."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    return "test" if split == "test" else "train"


def folder(root: str | Path) -> Path:
    """The root of a data set, which must exist."""
    root = Path(root)
    if not root.is_dir():
        what = "is a file, expected a folder" if root.exists() else "no such folder"
        raise DatasetError(f"{printable(root)}: {what}")
    return root


def first_of(root: Path, places: Sequence[str]) -> Path:
    """The first of some places below `root` that exists."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise DatasetError(f"{printable(root)}: found none of {', '.join(places)}")


def check_fold(fold: int) -> None:
    """Refuses what is not one of five folds."""
    if fold not in range(1, 6):
        raise ValueError(f"fold must be 1 to 5, got {fold!r}")


def clip_number(name: str, file: Path) -> int:
    """The number of a clip, however it is padded and whether or not it has a suffix."""
    stem = Path(name).stem
    if not (stem.isascii() and stem.isdigit()):
        raise DatasetError(f"{printable(file)}: clip names are numbers, got {name!r}")
    return int(stem)


def class_order(official: Sequence[str], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """The class names to use, and for each official label its place among them."""
    names = tuple(official if wanted is None else wanted)
    if sorted(names) != sorted(official):
        raise ValueError(f"class_names must be {', '.join(official)} in some order, got {', '.join(names)}")
    return names, [names.index(name) for name in official]
