"""Whether a checkpoint is tested on videos of its own training set."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ifdd.config import IFDDConfig
from ifdd.data.datasets import VideoDataset
from ifdd.data.errors import DatasetWarning
from ifdd.text import counted, printable
from ifdd.training.config import DataConfig, TrainingConfig
from ifdd.training.data import make_dataset
from ifdd.training.folder import BEST, EXPORTED, LAST, SETTINGS


def overlap_warning(weights: Path, data: DataConfig) -> str | None:
    """One line where test videos are in the training set of the weights; None where they are not, or where
    it cannot be known: away from the settings of their run, or with the training videos elsewhere by now.

    Args:
        weights: file of a run, beside its ``config.yaml``.
        data: the test set.
    """
    settings = weights.absolute().parent / SETTINGS
    if weights.name not in (EXPORTED, BEST, LAST) or not settings.is_file():
        return None
    try:
        trained = set(_paths(_data_of(settings), "train"))
        tested = _paths(data, "test")
    except (OSError, TypeError, ValueError, KeyError, yaml.YAMLError):
        return None  # a faulty test set is complained of where it is read
    shared = len([path for path in tested if path in trained])
    if not shared:
        return None
    return (
        f"{shared} of {counted(len(tested), 'test video')} {'is' if shared == 1 else 'are'} in the training "
        f"set of this checkpoint ({printable(settings)}): the scores say little about new videos"
    )


def _data_of(settings: Path) -> DataConfig:
    options: dict[str, Any] = yaml.safe_load(settings.read_text(encoding="utf-8"))
    names = TrainingConfig().to_dict()["data"].keys() - {"name"}
    values = {name: options[name] for name in names if name in options}
    return TrainingConfig.from_dict({"data": {"name": options["data"], **values}}).data


def _paths(data: DataConfig, split: str) -> list[str]:
    """Real paths of all videos of a list; the held-out part belongs to the training set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        clips = make_dataset(replace(data, validation=0.0), split, IFDDConfig(), 0, must_exist=False)
    return [os.path.realpath(video.path) for video in clips.videos] if isinstance(clips, VideoDataset) else []
