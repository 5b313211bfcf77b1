"""The benchmarks DFEW, FERV39k and MAFW, and lists of your own, as data sets of clips.

All three benchmarks are given out on request only; they are read as they come, in the folders their authors
chose.

An item is (clip, label). In training a clip is one random window, augmented, float32 (3, T, S, S) in [0, 1].
When evaluating, samplers with one window per video give the same shape; "consecutive" and "dense" give all
windows of a video, (W, 3, T, S, S), W >= 1. `ifdd.training.windows.collate_windows` joins both kinds into one
batch of windows, and `mean_over_windows` averages the logits of each video.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import lists
from .errors import DatasetError, VideoError
from .face import CropBox, parse_crop
from .lists import DFEW_CLASSES, FERV39K_CLASSES, MAFW_CLASSES, Entry, ListFormat
from .resize import frames_to_clip
from .sampling import Sampling
from .transforms import ClipAugment
from .video import count_frames, locate_face, read_video

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DFEW", "MAFW", "DatasetError", "FERV39k", "ListDataset", "Video", "VideoDataset"]

Split = Literal["train", "validation", "test"]
SHOWN = 5
"""How many of many missing files an error names."""


class Video(NamedTuple):
    """One video of a data set: a file or a folder of frames, its label, and its soft label if there is
    one.
    """

    path: Path
    label: int
    soft_label: tuple[float, ...] | None = None


class ClipOptions(TypedDict, total=False):
    """Keyword arguments that all data sets share; see `VideoDataset`."""

    stride: int
    sampling: str | None
    views: int
    image_size: int
    augment: bool | ClipAugment
    seed: int
    crop: str | CropBox | None
    on_error: Literal["raise", "skip"]


class VideoDataset(Dataset[tuple[Tensor, Any]]):
    """Clips of a list of videos.

    Everything random is drawn from (seed, epoch, index) and nothing else: the same for any number of workers
    and any order of access. `set_epoch` reaches workers that are kept alive between epochs, too.

    Args:
        videos: what to read. All must exist.
        class_names: names in label order.
        training: random windows and augmentation; otherwise all is fixed.
        clip_frames: T, frames of a clip.
        stride: step between them in the video.
        sampling: name of the sampler when evaluating, see `ifdd.data.sampling`; None takes "centre". Training
            uses its random form.
        views: windows of the sampler "dense".
        short: how videos shorter than T * stride are stretched, see `ifdd.data.sampling.SHORT_POLICIES`.
        image_size: S; every frame is resized to S x S on loading, whatever its size.
        augment: True for `ClipAugment(image_size)`, False for none, or one of your own; only in training.
        seed: of windows and augmentation, at least 0.
        crop: region of every frame to keep, "x,y,w,h" or a CropBox; "auto" finds the face of each video once.
        on_error: what a video that cannot be read does in training: "raise", or "skip": the next readable one
            takes its place, with a warning, and `skipped` counts it. Evaluation always raises, since leaving
            out a video would change the score.

    Raises:
        DatasetError: no videos, or some that are not there (all are looked for at once).
        ValueError: an option is not usable.
    """

    #: How the data set's own setting stretches short videos.
    short_policy = "repeat_last"

    def __init__(
        self,
        videos: Sequence[Video],
        class_names: Sequence[str],
        *,
        training: bool,
        clip_frames: int = 16,
        stride: int = 1,
        sampling: str | None = None,
        views: int = 2,
        short: str = "repeat_last",
        image_size: int = 224,
        augment: bool | ClipAugment = True,
        seed: int = 0,
        crop: str | CropBox | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if seed < 0 or image_size < 1:
            raise ValueError(
                f"seed must be at least 0 and image_size at least 1, got {seed} and {image_size}"
            )
        self.videos = tuple(videos)
        self.class_names = tuple(class_names)
        self.training = training
        if sampling == "random" and not training:
            raise ValueError("sampling 'random' would make the score vary: take 'centre'")
        evaluation = Sampling(sampling or "centre", clip_frames, stride, short, views)
        self.sampling = evaluation.training() if training else evaluation
        self.image_size = image_size
        self.seed = seed
        self.on_error = on_error
        self.crop = parse_crop(crop)
        self.augment: ClipAugment | None = None
        if training and augment is not False:
            self.augment = ClipAugment(image_size) if augment is True else augment
            if self.augment.size != image_size:
                raise ValueError(f"augment makes clips of {self.augment.size}, image_size is {image_size}")
        _require_present(type(self).__name__, self.videos)
        # In shared memory: workers that live longer than an epoch see changes, and report what they skipped.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(len(self.videos), dtype=torch.bool).share_memory_()
        self._lengths: dict[Path, int] = {}
        self._faces: dict[Path, CropBox] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """(clip, label): label an int, or float32 (K,) with soft labels.

        Raises:
            VideoError: the video cannot be read (in training with on_error="skip": none can).
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} videos")
        index %= len(self)
        if not (self.training and self.on_error == "skip"):
            return self._load(index, index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self._skipped[place]:
                continue
            try:
                return self._load(place, index)
            except VideoError as error:
                self._skipped[place] = True
                warnings.warn(f"skipped a video: {error}", stacklevel=2)
        raise VideoError(
            f"{self.videos[index].path}: like all {len(self)} videos of the data set, unreadable"
        )

    def set_epoch(self, epoch: int) -> None:
        """Draws new windows and augmentations for training; evaluation does not change."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    @property
    def labels(self) -> list[int]:
        """The label of every video, in order."""
        return [video.label for video in self.videos]

    @property
    def skipped(self) -> int:
        """How many videos could not be read so far (on_error="skip"), in all workers."""
        return int(self._skipped.sum())

    def _load(self, place: int, index: int) -> tuple[Tensor, Any]:
        video = self.videos[place]
        epoch = int(self._epoch) if self.training else 0
        numbers = np.random.default_rng((self.seed, epoch, index))
        windows = self.sampling.indices(self._length(video.path), numbers if self.training else None)
        region = self._region(video.path)
        decoded = read_video(video.path, region, size=self.image_size, indices=windows.ravel())
        clip = frames_to_clip(decoded.frames)  # (3, W * T, S, S)
        if not self.sampling.single:
            clip = clip.reshape(3, *windows.shape, *clip.shape[-2:]).transpose(0, 1).contiguous()
        if self.augment is not None:
            clip = self.augment(clip, torch.Generator().manual_seed(int(numbers.integers(2**62))))
        label = video.label if video.soft_label is None else torch.tensor(video.soft_label)
        return clip, label

    def _length(self, path: Path) -> int:
        if path not in self._lengths:
            self._lengths[path] = count_frames(path)
        return self._lengths[path]

    def _region(self, path: Path) -> CropBox | None:
        if self.crop != "auto":
            return self.crop
        if path not in self._faces:
            self._faces[path] = locate_face(path)
        return self._faces[path]


class DFEW(VideoDataset):
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
        first_label: what the first class is numbered in the lists (officially 1, with 0 for clips to leave
            out).
        clip_frames: T; with the defaults here the published setting.
        options: see `VideoDataset`. `sampling` is "centre" for "16f" (the only window there is) and
            "consecutive" otherwise, as in the original.
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
        first_label: int = 1,
        clip_frames: int = 16,
        **options: Unpack[ClipOptions],
    ) -> None:
        root = _folder(root)
        _check_fold(fold)
        if clips not in ("16f", "native", "original"):
            raise ValueError(f"clips must be '16f', 'native' or 'original', got {clips!r}")
        part = _list_part(split)
        splits = ("EmoLabel_DataSplit", ".")
        file = _first_of(
            root,
            [
                f"{top}/{part}{kind}/set_{fold}.csv"
                for top in splits
                for kind in ("(single-labeled)", "_single-labeled")
            ],
        )
        listed = lists.read_dfew(file, first_label)
        self.dropped = listed.dropped
        votes: dict[int, tuple[float, ...]] = {}
        if soft_labels:
            votes = lists.read_dfew_votes(_first_of(root, ["Annotation/annotation.csv", "annotation.csv"]))
        names, order = _class_order(DFEW_CLASSES, class_names)
        folder = {"16f": "clip_224x224_16f", "native": "clip_224x224", "original": "original"}[clips]
        base = _first_of(root, [f"Clip/{folder}", folder])
        videos = []
        for entry in listed.entries:
            number = _number(entry.name, file)
            soft = None
            if soft_labels:
                if number not in votes:
                    raise DatasetError(f"{file}: clip {number} has no votes in the annotation")
                soft = tuple(votes[number][order.index(label)] for label in range(len(names)))
            name = f"{number}.mp4" if clips == "original" else f"{number:05d}"
            videos.append(Video(base / name, order[entry.label], soft))
        if options.get("sampling") is None:
            options["sampling"] = "centre" if clips == "16f" else "consecutive"
        videos = _part_of(videos, split, validation, options.get("seed", 0))
        super().__init__(videos, names, training=split == "train", clip_frames=clip_frames, **options)


class FERV39k(VideoDataset):
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

    short_policy = "repeat_each"

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
        root = _folder(root)
        part = _list_part(split)
        file = _first_of(
            root, [f"4_setups/All_scenes/{part}_All.csv", f"All_scenes/{part}_All.csv", f"{part}_All.csv"]
        )
        names, order = _class_order(FERV39K_CLASSES, class_names)
        base = _first_of(root, ["2_ClipsforFaceCrop"])
        videos = [
            Video(base / entry.name.replace("\\", "/"), order[entry.label])
            for entry in lists.read_ferv39k(file)
        ]
        videos = _part_of(videos, split, validation, options.get("seed", 0))
        super().__init__(
            videos,
            names,
            training=split == "train",
            clip_frames=clip_frames,
            short=self.short_policy,
            **options,
        )


class MAFW(VideoDataset):
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
    """

    short_policy = "repeat_each"

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
        root = _folder(root)
        _check_fold(fold)
        if clips not in ("frames", "original"):
            raise ValueError(f"clips must be 'frames' or 'original', got {clips!r}")
        part = _list_part(split)
        tops = ("Train & Test Set/single", "label")
        captions = ("no_caption", "with_caption")
        file = _first_of(root, [f"{top}/{kind}/set_{fold}/{part}.txt" for top in tops for kind in captions])
        names, order = _class_order(MAFW_CLASSES, class_names)
        folder = "frames" if clips == "frames" else "clips"
        base = _first_of(root, [f"data/{folder}", folder])
        videos = []
        for entry in lists.read_mafw(file):
            number = _number(entry.name, file)
            name = f"{number:05d}.mp4" if clips == "original" else f"{number:05d}"
            videos.append(Video(base / name, order[entry.label]))
        options.setdefault("stride", 2)
        videos = _part_of(videos, split, validation, options.get("seed", 0))
        super().__init__(
            videos,
            names,
            training=split == "train",
            clip_frames=clip_frames,
            short=self.short_policy,
            **options,
        )


class ListDataset(VideoDataset):
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
        short: str = "repeat_last",
        **options: Unpack[ClipOptions],
    ) -> None:
        _list_part(split)
        list_file = Path(list_file)
        base = list_file.parent if root is None else _folder(root)
        entries = lists.read_list(list_file, class_names, format, first_label)
        videos = [Video(_resolve(base, entry, strip_prefix), entry.label) for entry in entries]
        if split != "test":
            videos = _part_of(videos, split, validation, options.get("seed", 0))
        super().__init__(
            videos, class_names, training=split == "train", clip_frames=clip_frames, short=short, **options
        )


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


def _folder(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    return root


def _first_of(root: Path, places: Sequence[str]) -> Path:
    for place in places:
        if (root / place).exists():
            return root / place
    raise DatasetError(f"{root}: found none of {', '.join(places)}")


def _check_fold(fold: int) -> None:
    if fold not in range(1, 6):
        raise ValueError(f"fold must be 1 to 5, got {fold!r}")


def _list_part(split: str) -> str:
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    return "test" if split == "test" else "train"


def _number(name: str, file: Path) -> int:
    """The number of a clip, however it is padded and whether or not it has a suffix."""
    stem = Path(name).stem
    if not (stem.isascii() and stem.isdigit()):
        raise DatasetError(f"{file}: clip names are numbers, got {name!r}")
    return int(stem)


def _class_order(official: Sequence[str], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """The class names to use, and for each official label its place among them."""
    names = tuple(official if wanted is None else wanted)
    if sorted(names) != sorted(official):
        raise ValueError(f"class_names must be {', '.join(official)} in some order, got {', '.join(names)}")
    return names, [names.index(name) for name in official]


def _part_of(videos: Sequence[Video], split: str, validation: float, seed: int) -> list[Video]:
    if split == "test":
        return list(videos)
    kept, held = lists.hold_out([video.label for video in videos], validation, seed)
    if split == "validation" and not held:
        raise ValueError(f"split 'validation' needs a part of the training set, got validation={validation}")
    return [videos[index] for index in (kept if split == "train" else held)]


def _require_present(name: str, videos: Sequence[Video]) -> None:
    if not videos:
        raise DatasetError(f"{name}: no videos")
    missing = [str(video.path) for video in videos if not video.path.exists()]
    if missing:
        more = ", ..." if len(missing) > SHOWN else ""
        raise DatasetError(
            f"{name}: {len(missing)} of {len(videos)} videos are missing: {', '.join(missing[:SHOWN])}{more}"
        )
