"""Training checkpoints that survive a kill at any moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ifdd.checkpoint.files import TRAINING_RECORD, CheckpointError, read_pickle
from ifdd.checkpoint.training import TrainingRecord
from ifdd.whole import PART, part_of


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk, then renames.

    Lightning's own writer goes through a temporary file in the system's temporary folder; when that is
    another file system the final move is a copy, and a kill during it leaves half a file under the
    checkpoint's name. Here the name always holds either the previous checkpoint or the new one. Loading
    never unpickles code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes the file; ``path`` never holds a part of it."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are local files")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part_of(target) as part, part.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a file by :func:`load_training_checkpoint`, for any arguments."""
        return load_training_checkpoint(Path(path))


def load_training_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a ``last.ckpt`` or ``best.ckpt`` onto the CPU, tensors and plain types only.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not such a checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = read_pickle(path)
    except CheckpointError as error:
        raise ValueError(
            f"{path}: not a training checkpoint ({str(error).removeprefix(f'{path}: ')})"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(TRAINING_RECORD), dict):
        raise ValueError(f"{path}: not a checkpoint of an ifdd training")
    return content


def training_record(content: dict[str, Any], path: Path) -> TrainingRecord:
    """Settings, classes and scores of a training checkpoint.

    Raises:
        ValueError: they are incomplete, or settings of another version of this package.
    """
    try:
        return TrainingRecord.of({**content[TRAINING_RECORD], "epoch": content.get("epoch")})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its settings cannot be read by this version: {error}") from error


def remove_partial_files(folder: Path) -> None:
    """Deletes what a killed writer left behind."""
    for part in folder.glob(PART):
        part.unlink(missing_ok=True)
