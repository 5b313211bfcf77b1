"""Clips of a list of videos: reading, cropping, sampling and augmenting them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ifdd.data.errors import DatasetError, DatasetWarning, VideoError
from ifdd.data.face import CropBox, parse_crop
from ifdd.data.locate import exists
from ifdd.data.resize import frames_to_clips
from ifdd.data.sampling import Sampling, Short
from ifdd.data.transforms import Augmentation, ClipAugment
from ifdd.data.video import count_frames, locate_face, read_video
from ifdd.text import counted, printable

SHOWN = 5
"""How many of many missing files an error names."""


class Video(NamedTuple):
    """One video of a data set."""

    #: A file, or a folder of frames.
    path: Path
    #: Index into the class names.
    label: int
    #: One share per class, where the set has soft labels.
    soft_label: tuple[float, ...] | None = None


class RawClip(NamedTuple):
    """A clip as it is decoded, a quarter of the bytes of what the network takes.

    ``frames`` uint8 (T, S, S, 3), with several windows (W, T, S, S, 3); ``label`` an int, or float32 (K,)
    with soft labels; ``drawn`` the augmentation that is still to be done, if any.
    """

    frames: Tensor
    label: Any
    drawn: Augmentation | None


class LeftOut(NamedTuple):
    """A video that a training does without."""

    #: The video.
    video: Video
    #: Why, in one line.
    reason: str


class ClipOptions(TypedDict, total=False):
    """Keyword arguments that all data sets share.

    Args:
        stride, sampling, views, short, image_size, augment, seed, crop, on_error, must_exist: as for
            `VideoDataset`.
    """

    stride: int
    sampling: str | None
    views: int
    short: Short | None
    image_size: int
    augment: bool | ClipAugment
    seed: int
    crop: str | CropBox | None
    on_error: Literal["raise", "skip"]
    must_exist: bool


TEST_IS_WHOLE = (
    "on_error skip leaves out training videos only: a test set without this would have another score"
)


class VideoDataset(Dataset[tuple[Tensor, Any]]):
    """Clips of a list of videos.

    Everything random is drawn from (seed, epoch, number of the video) and nothing else: the same for any
    number of workers, any order of access, and whether or not other videos are left out. `set_epoch` reaches
    workers that are kept alive between epochs, too.

    Args:
        videos: what to read.
        class_names: names in label order.
        training: random windows and augmentation; otherwise all is fixed.
        clip_frames: T, frames of a clip.
        stride: step between them in the video.
        sampling: name of the sampler when evaluating, see `ifdd.data.sampling`; None takes "centre". Training
            uses its random form.
        views: windows of the sampler "dense".
        short: how videos shorter than T * stride are stretched, see `ifdd.data.sampling.SHORT_POLICIES`.
        image_size: S; every frame is resized to S x S on loading.
        augment: True for `ClipAugment(image_size)`, False for none, or one of your own; only in training.
        seed: of windows and augmentation, at least 0.
        crop: region of every frame to keep, "x,y,w,h" or a CropBox; "auto" finds the face of each video once.
        on_error: what becomes of a training video that is missing or cannot be read: "raise", or "skip". A
            missing one is left out from the beginning (`left_out`); in the place of one that turns out to be
            unreadable comes the next readable one, with a warning, and `skipped` counts it. Test sets always
            raise, since leaving out a video would change the score.
        held_out: whether these were held out of a training set: with "skip", missing ones are left out, and
            whoever reads them may `leave_out` more.
        numbers: number of each video, which its random numbers depend on; by default its place in `videos`.
        must_exist: False looks for no video in advance.

    Raises:
        DatasetError: no videos, or some (with "skip": all) are not there; all are looked for at once.
        ValueError: an option is not usable.
    """

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
        short: Short | None = None,
        image_size: int = 224,
        augment: bool | ClipAugment = True,
        seed: int = 0,
        crop: str | CropBox | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        held_out: bool = False,
        numbers: Sequence[int] | None = None,
        must_exist: bool = True,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if seed < 0 or image_size < 1:
            raise ValueError(
                f"seed must be at least 0 and image_size at least 1, got {seed} and {image_size}"
            )
        self.class_names = tuple(class_names)
        self.training = training
        self.held_out = held_out
        if sampling == "random" and not training:
            raise ValueError("sampling 'random' would make the score vary: take 'centre'")
        evaluation = Sampling(sampling or "centre", clip_frames, stride, short or "repeat_last", views)
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
        self.left_out: list[LeftOut] = []
        there = self._there(videos) if must_exist else list(range(len(videos)))
        self.videos = tuple(videos[place] for place in there)
        self.numbers = tuple(place if numbers is None else numbers[place] for place in there)
        # In shared memory: workers that live longer than an epoch see changes, and report what they skipped.
        self._epoch = _shared(torch.zeros((), dtype=torch.int64))
        self._skipped = _shared(torch.zeros(len(self.videos), dtype=torch.bool))
        self._news: list[LeftOut] = []
        self._lengths: dict[Path, int] = {}
        self._faces: dict[Path, CropBox] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """(clip, label): clip float32 (3, T, S, S), augmented, with several windows (W, 3, T, S, S); label an
        int, or float32 (K,) with soft labels.

        Raises:
            VideoError: the video cannot be read (in training with on_error="skip": none can).
        """
        raw = self.raw(index)
        if self.augment is not None and raw.drawn is not None:
            return self.augment.apply(raw.frames[None], [raw.drawn])[0], raw.label
        clips = frames_to_clips(raw.frames if raw.frames.ndim == 5 else raw.frames[None])
        return clips if raw.frames.ndim == 5 else clips[0], raw.label

    def digest(self) -> str:
        """Of the names and labels of the videos, in order: equal for the same videos in another place."""
        videos = "\n".join(f"{video.label} {video.path.name}" for video in self.videos)
        return hashlib.sha256(os.fsencode(videos)).hexdigest()[:16]

    def raw(self, index: int) -> RawClip:
        """The same clip before conversion and augmentation, which `ClipAugment.apply` and
        `ifdd.data.resize.frames_to_clips` do for a whole batch, on any device.

        Raises:
            VideoError: as for the clip itself.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} videos")
        index %= len(self)
        if self.on_error == "skip" and not self.skips:
            try:
                return self._load(index, index)
            except VideoError as error:
                raise VideoError(f"{error}; {TEST_IS_WHOLE}") from None
        if not self.skips:
            try:
                return self._load(index, index)
            except VideoError as error:
                way = "--on_error skip trains without such videos, and " if self.training else ""
                raise VideoError(f"{error}; {way}`ifdd check` finds them all in advance") from None
        if not self.training:
            return self._load(index, index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self._skipped[place]:
                continue
            try:
                return self._load(place, index)
            except VideoError as error:
                self.leave_out(place, error)
        raise VideoError(
            f"{printable(self.videos[index].path)}: like all {len(self)} videos of the data set, unreadable"
        )

    @property
    def skips(self) -> bool:
        """Whether videos that cannot be read may be left out."""
        return self.on_error == "skip" and (self.training or self.held_out)

    def leave_out(self, index: int, error: VideoError) -> None:
        """Does without a video from now on, in all workers, with a warning."""
        self._skipped[index] = True
        self._news.append(LeftOut(self.videos[index], str(error)))
        warnings.warn(f"skipped a video: {error}", DatasetWarning, stacklevel=3)

    def is_left_out(self, index: int) -> bool:
        """Whether a video could not be read before, in any worker."""
        return bool(self._skipped[index])

    def take_news(self) -> list[LeftOut]:
        """The videos that this process skipped since the last call."""
        news, self._news = self._news, []
        return news

    def set_epoch(self, epoch: int) -> None:
        """Draws new windows and augmentations for training; evaluation does not change.

        Raises:
            ValueError: a negative `epoch`.
        """
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

    def _there(self, videos: Sequence[Video]) -> list[int]:
        """Places of the videos that exist; the others are left out, where that is allowed."""
        name = self._called()
        if not videos:
            raise DatasetError(f"{name}: no videos")
        there = [place for place, video in enumerate(videos) if exists(video.path)]
        missing = [videos[place] for place in sorted(set(range(len(videos))) - set(there))]
        if not missing:
            return there
        more = ", ..." if len(missing) > SHOWN else ""
        names = ", ".join(printable(video.path) for video in missing[:SHOWN])
        which = f"{len(missing)} of {counted(len(videos), 'video')} {'is' if len(missing) == 1 else 'are'}"
        text = f"{name}: {which} missing: {names}{more}"
        if not self.skips or not there:
            hint = f"; {TEST_IS_WHOLE}" if self.on_error == "skip" and not self.skips else ""
            advice = self._advice(missing, [videos[place] for place in there])
            advice = advice or "; `ifdd check` also finds those that cannot be read"
            raise DatasetError(text + advice + hint)
        warnings.warn(text.replace("missing:", "missing and left out:", 1), DatasetWarning, stacklevel=4)
        self.left_out = [LeftOut(video, "missing") for video in missing]
        return there

    def _called(self) -> str:
        """The data set in messages."""
        return type(self).__name__

    def _advice(self, missing: Sequence[Video], found: Sequence[Video]) -> str:
        """How missing videos might be found, and the others still: words to follow on the error."""
        return ""

    def _load(self, place: int, index: int) -> RawClip:
        video = self.videos[place]
        epoch = int(self._epoch) if self.training else 0
        numbers = np.random.default_rng((self.seed, epoch, self.numbers[index]))
        windows = self.sampling.indices(self._length(video.path), numbers if self.training else None)
        region = self._region(video.path)
        decoded = read_video(video.path, region, size=self.image_size, indices=windows.ravel())
        frames = torch.from_numpy(decoded.frames)
        if not self.sampling.single:
            frames = frames.reshape(*windows.shape, *frames.shape[1:])
        drawn = None
        if self.augment is not None:
            generator = torch.Generator().manual_seed(int(numbers.integers(2**62)))
            drawn = self.augment.draw(self.image_size, self.image_size, generator)
        label = video.label if video.soft_label is None else torch.tensor(video.soft_label)
        return RawClip(frames, label, drawn)

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


def _shared(tensor: Tensor) -> Tensor:
    """In shared memory, where the system has any: without it there are no workers that could share it."""
    with contextlib.suppress(RuntimeError, OSError):
        tensor.share_memory_()
    return tensor
