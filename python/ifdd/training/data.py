"""The loaders of a training and a test."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from ifdd.config import IFDDConfig
from ifdd.data.datasets import (
    DFEW,
    MAFW,
    FERV39k,
    FolderDataset,
    ListDataset,
    RawClip,
    VideoDataset,
)
from ifdd.data.datasets.layout import Split, SplitDataset
from ifdd.data.datasets.videos import LeftOut
from ifdd.data.errors import DatasetWarning
from ifdd.data.sampling import SamplingPolicy
from ifdd.data.synthetic import Difficulty, SyntheticExpressions
from ifdd.training.config import DataConfig, TrainingConfig
from ifdd.training.launch import ALONE, Launch
from ifdd.training.loading import ClipLoader
from ifdd.training.order import EpochOrder, Share
from ifdd.training.seeds import derived_seed
from ifdd.training.skipped import SkippedVideos
from ifdd.training.windows import collate_clips, collate_windows, empty_windows

SYNTHETIC_VALIDATION_STREAM = 1
"""Keeps the drawn validation clips apart from the training clips of the same seed."""


class ClipDataset(Protocol):
    """The interface of a data set for the loaders."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> RawClip | tuple[Tensor, Any]: ...

    def set_epoch(self, epoch: int) -> None:
        """Draws new training clips."""
        ...


def sampling_policy(data: DataConfig) -> SamplingPolicy:
    """How windows are taken from the videos: as published for the data set, or as set."""
    sets: dict[str, type[SplitDataset]] = {"dfew": DFEW, "ferv39k": FERV39k, "mafw": MAFW}
    chosen: dict[str, Any] = {"stride": data.stride, "short": data.short}
    published = sets.get(data.name, ListDataset).policy
    return replace(published, **{name: value for name, value in chosen.items() if value is not None})


def make_dataset(
    data: DataConfig,
    split: str,
    network: IFDDConfig,
    seed: int,
    *,
    must_exist: bool = True,
    faults: list[str] | None = None,
) -> ClipDataset:
    """The ``"train"``, ``"validation"`` or ``"test"`` clips of a data set, as the network needs them.

    ``"validation"`` is held out from the training set; the drawn set draws other clips of other people for
    it. With `must_exist` False videos are not looked for. With a list for `faults`, lines of list files whose
    label is wrong are described there and left out.

    Raises:
        ifdd.data.errors.DatasetError: files are missing or lists unreadable.
        ValueError: an option is not usable.
    """
    if data.name == "synthetic":
        sizes = {
            "train": data.train_size,
            "validation": round(data.train_size * data.validation),
            "test": data.test_size,
        }
        return SyntheticExpressions(
            "test" if split == "test" else "train",
            size=sizes[split],
            clip_frames=network.clip_frames,
            image_size=network.image_size,
            seed=derived_seed(seed, SYNTHETIC_VALIDATION_STREAM) if split == "validation" else seed,
            difficulty=Difficulty.posed() if data.posed and split != "test" else None,
        )
    options: dict[str, Any] = {
        "validation": data.validation,
        "clip_frames": network.clip_frames,
        "image_size": network.image_size,
        **asdict(sampling_policy(data)),
        "sampling": data.sampling,
        "augment": data.augment,
        "seed": seed,
        "crop": data.crop,
        "on_error": data.on_error,
        "must_exist": must_exist,
    }
    root = cast(str, data.root)
    names = data.class_names
    if data.clips is not None:
        options["clips"] = data.clips
    if data.name == "dfew":
        soft = data.soft_labels and split == "train"
        options |= {"class_names": names, "first_label": data.first_label, "soft_labels": soft}
        return DFEW(root, data.fold, cast(Split, split), **options)
    if data.name == "ferv39k":
        return FERV39k(root, cast(Split, split), class_names=names, **options)
    if data.name == "mafw":
        return MAFW(root, data.fold, cast(Split, split), class_names=names, **options)
    if data.name == "folder":
        return FolderDataset(root, cast(Split, split), class_names=names, **options)
    file, other = (data.test_list, data.train_list) if split == "test" else (data.train_list, data.test_list)
    if file is None:
        raise ValueError(f"data set list needs --{'test_list' if split == 'test' else 'train_list'}")
    options |= {
        "format": data.format,
        "first_label": data.first_label,
        "path_column": data.path_column,
        "label_column": data.label_column,
        "strip_prefix": data.strip_prefix,
        "path_map": data.path_map,
        "companions": [] if other is None else [other],
        "faults": faults,
    }
    return ListDataset(file, names or (), root, cast(Split, split), **options)


class OneFrame:
    """Clips without motion: one frame of each clip, drawn from (seed, epoch, number of the clip), in the
    place of all.

    A network trained and tested on these shows how much a data set gives away in single frames.
    """

    def __init__(self, clips: ClipDataset, seed: int) -> None:
        self.clips = clips
        self.class_names = clips.class_names
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draws new clips and new frames."""
        self.epoch = epoch
        self.clips.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> RawClip | tuple[Tensor, Any]:
        if isinstance(self.clips, VideoDataset):
            # All frames of a clip are augmented alike, so the frame may be chosen before.
            raw = self.clips.raw(index)
            return raw._replace(frames=self._still(raw.frames, -4, self.clips.numbers[index]))
        clip, label = cast(tuple[Tensor, Any], self.clips[index])
        return self._still(clip, -3, index), label

    def _still(self, clip: Tensor, time: int, number: int) -> Tensor:
        frame = derived_seed(self.seed, self.epoch, number) % clip.shape[time]
        return clip.narrow(time, frame, 1).expand_as(clip).contiguous()


class RecognitionData(pl.LightningDataModule):
    """Loaders of the data set that a configuration names.

    The trainer asks for the training loader in each epoch (``reload_dataloaders_every_n_epochs=1``) and gets
    the same one, set to that epoch: its workers live on, and order, windows and augmentation are functions of
    (seed, epoch) however often the training was interrupted.

    Args:
        config: what to read, and the network it is for.
        network: the network, when it is not ``config.model`` (a checkpoint's).
        skipped: file for the list of the videos that a training leaves out.
        launch: the processes among which the clips are shared.
    """

    def __init__(
        self,
        config: TrainingConfig,
        network: IFDDConfig | None = None,
        skipped: Path | None = None,
        launch: Launch = ALONE,
    ) -> None:
        super().__init__()
        self.launch = launch
        self.skipped = SkippedVideos(skipped if launch.is_first else None)
        self.config = config
        self.network = network or IFDDConfig.from_dict(config.model)
        self._datasets: dict[str, ClipDataset] = {}
        self._order: EpochOrder
        self._train_loader: ClipLoader | None = None
        self._evaluation_loaders: dict[str, ClipLoader] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in label order."""
        return tuple(self.dataset("train").class_names)

    def dataset(self, split: str) -> ClipDataset:
        """The clips of a split, made once."""
        if split not in self._datasets:
            clips = make_dataset(self.config.data, split, self.network, self.config.seed)
            self._datasets[split] = OneFrame(clips, self.config.seed) if self.config.data.one_frame else clips
        return self._datasets[split]

    def setup(self, stage: str) -> None:
        """Writes down which videos are missing, before the first epoch."""
        if stage == "fit":
            for split in ("train", *(["validation"] if self.config.data.validation > 0 else [])):
                videos = self._videos(split)
                self._record(split)(videos.left_out if videos is not None else [])

    def teardown(self, stage: str) -> None:
        """Says how many videos a training left out."""
        if stage == "fit" and self.launch.is_first and (summary := self.skipped.summary()):
            # Not the caller's place: remarks of the training library are silenced.
            warnings.warn(summary, DatasetWarning, stacklevel=1)

    def _record(self, split: str) -> Callable[[Sequence[LeftOut]], None]:
        """Writes down what is left out of a split."""
        first = getattr(self._videos(split), "first_label", 0)
        return functools.partial(self.skipped.add, split, first_label=first)

    def _videos(self, split: str) -> VideoDataset | None:
        clips = self.dataset(split)
        clips = clips.clips if isinstance(clips, OneFrame) else clips
        return clips if isinstance(clips, VideoDataset) else None

    def _batch_bytes(self, split: str, clips: int) -> int | None:
        """Of a batch as it travels: drawn clips as float32. None for consecutive sampling: how many windows
        it takes of a video is not known in advance.
        """
        size = 3 * self.network.clip_frames * self.network.image_size**2
        size *= min(clips, len(self.dataset(split)))
        videos = self._videos(split)
        if videos is None:
            return 4 * size
        if videos.sampling.name == "consecutive":
            return None
        return size * (videos.sampling.views if videos.sampling.name == "dense" else 1)

    def clips(self) -> dict[str, int]:
        """Number of clips of the training and of the held-out part (0 without one)."""
        held_out = len(self.dataset("validation")) if self.config.data.validation > 0 else 0
        return {"train": len(self.dataset("train")), "validation": held_out}

    def class_clips(self) -> tuple[int, ...] | None:
        """Training clips of each class, in label order; None for drawn ones, which are in equal parts."""
        videos = self._videos("train")
        if videos is None:
            return None
        counts = Counter(videos.labels)
        return tuple(counts[label] for label in range(len(videos.class_names)))

    def digests(self) -> dict[str, str]:
        """`VideoDataset.digest` of the training and of the held-out part; drawn clips have none."""
        parts = ("train", "validation") if self.config.data.validation > 0 else ("train",)
        videos = {part: self._videos(part) for part in parts}
        return {part: found.digest() for part, found in videos.items() if found is not None}

    def require_classes(self, class_names: tuple[str, ...]) -> None:
        """Refuses a test set whose labels mean something else than a checkpoint's logits.

        Raises:
            ValueError: other classes, or the same in another order.
        """
        names = tuple(self.dataset("test").class_names)
        if names != class_names:
            raise ValueError(
                f"the checkpoint's classes ({', '.join(class_names)}) are not those of data set "
                f"{self.config.data.name} ({', '.join(names)}) in that order"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of the trainer's current epoch: the same one with the same workers, in another order."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        if self._train_loader is None:
            dataset = self.dataset("train")
            batch, (rank, ranks) = self.config.data.batch_size, (self.launch.rank, self.launch.world_size)
            self._order = EpochOrder(len(dataset), batch, self.config.seed, rank, ranks)
            self._train_loader = ClipLoader(
                dataset,
                functools.partial(collate_clips, classes=len(dataset.class_names)),
                batch_bytes=self._batch_bytes("train", batch // ranks),
                processes=self.launch.devices,
                videos=self._videos("train"),
                record=self._record("train"),
                batches=self._order,
                # Its own generator: starting workers must not draw from the training's random numbers.
                generator=torch.Generator().manual_seed(0),
                num_workers=self.config.data.workers,
                pin_memory=torch.cuda.is_available(),
            )
        self._order.epoch = epoch
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Loader of the held-out part; none without one."""
        return self._evaluation_loader("validation") if self.config.data.validation > 0 else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Loader of the test set."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        if split not in self._evaluation_loaders:
            dataset = self.dataset(split)
            self._evaluation_loaders[split] = ClipLoader(
                dataset,
                functools.partial(collate_windows, classes=len(dataset.class_names)),
                batch_bytes=self._batch_bytes(split, self.config.data.eval_batch_size),
                processes=self.launch.devices,
                videos=self._videos(split),
                record=self._record(split),
                batches=BatchSampler(
                    Share(len(dataset), self.launch.rank, self.launch.world_size),
                    self.config.data.eval_batch_size,
                    drop_last=False,
                ),
                # With more processes than videos some have none, and take part in the count all the same.
                empty=empty_windows if self.launch.world_size > 1 else None,
                generator=torch.Generator().manual_seed(0),
                num_workers=self.config.data.workers,
                pin_memory=torch.cuda.is_available(),
            )
        return self._evaluation_loaders[split]
