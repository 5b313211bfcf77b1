"""A file of a checkpoint, compared with the network before it takes its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ifdd.checkpoint import Checkpoint, load_checkpoint
from ifdd.export.formats import ExportError, Run, cause, check_available, run_of
from ifdd.export.program import OUTPUTS, metadata_of, trace
from ifdd.model import IFDD

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BATCHES = (1, 3)
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """A file that was written and gives the network's numbers.

    Attributes:
        format: one of :data:`ifdd.export.FORMATS`.
        files: the file, and the one with its weights where these do not fit into one.
        difference: the largest difference from the network on random clips, relative to the largest value of
            each result.
    """

    format: str
    files: tuple[Path, ...]
    difference: float

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files)


def export_checkpoint(
    checkpoint: Checkpoint | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: str,
    *,
    announce: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Writes a checkpoint's network as a file of another format, float32 and for the CPU, of any batch.

    The file is run on random clips, one and three at a time, and compared with the network before it takes
    its place: an existing file is replaced by a good one or not at all.

    Args:
        checkpoint: loaded, or the path of one.
        path: the file; its folder must exist, its suffix must be the format's.
        format: one of :data:`ifdd.export.FORMATS`.
        announce: called with a few words before each step, which may take minutes.

    Returns:
        :class:`Exported`.

    Raises:
        ifdd.checkpoint.CheckpointError: the checkpoint cannot be read.
        ValueError: an unknown format, another suffix, or a network that cannot be traced (:func:`trace`).
        ExportError: something is missing here, the network's numbers are not finite, or the file does not
            give them.
        OSError: the file cannot be written.
    """
    target = Path(path)
    found = check_available(format)
    if target.suffix != found.suffix:
        raise ValueError(f"{target}: a file of format {format} ends in {found.suffix}")
    if target.is_dir():
        raise IsADirectoryError(f"{target}: is a folder, not a file to write")
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    metadata = metadata_of(loaded)
    expected = _expected(loaded.model)
    announce("tracing the network")
    program = trace(loaded.model)
    # On the target's file system: the file appears in one step. Under its own name, which it may hold.
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        made = folder / target.name
        announce(f"writing {target.name}")
        _written(found.write, program, made, metadata)
        announce("comparing it with the network")
        difference = _difference(run_of(found, made), expected, target)
        files = _move(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Exported(format, files, difference)


def _written(
    write: Callable[[ExportedProgram, Path, Mapping[str, str]], None],
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
) -> None:
    try:
        write(program, path, metadata)
    except OSError:
        raise
    except Exception as error:  # of PyTorch's exporters, each with errors of its own
        raise ExportError(f"{path.name}: PyTorch cannot write it: {cause(error)}") from error


def _expected(model: IFDD) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Random clips and what the network makes of them."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    pairs = []
    for batch in BATCHES:
        shape = (batch, 3, config.clip_frames, config.image_size, config.image_size)
        # Frames of different brightness: the hard split compares frames, and noise makes them all alike.
        light = torch.rand(batch, 1, config.clip_frames, 1, 1, generator=generator)
        clips = light * torch.rand(shape, generator=generator)
        with torch.inference_mode():
            results = model(clips)._asdict()
        for name, value in results.items():
            if not torch.isfinite(value).all():
                raise ExportError(
                    f"the network gives NaN or infinite values ({name}): nothing to compare with"
                )
        pairs.append((clips, results))
    return pairs


def _difference(run: Run, expected: list[tuple[Tensor, dict[str, Tensor]]], target: Path) -> float:
    """The largest relative difference; an :class:`ExportError` where it is too large."""
    largest = 0.0
    for clips, wanted in expected:
        with torch.inference_mode():
            try:
                results = run(clips)
            except Exception as error:  # every runtime has errors of its own
                raise ExportError(
                    f"{target}: not written: it does not run with {len(clips)} clips: {cause(error)}"
                ) from error
        for name in OUTPUTS:
            difference = relative_difference(results[name], wanted[name])
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{target}: not written: with {len(clips)} clips its {name} differs from the network's "
                    f"by {difference:.1e} of the largest value, more than {TOLERANCE:.0e}"
                )
            largest = max(largest, difference)
    return largest


def relative_difference(result: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite for another shape."""
    if result.shape != wanted.shape:
        return float("inf")
    scale = wanted.abs().max()
    return float((result - wanted).abs().max() / torch.where(scale > 0, scale, torch.ones_like(scale)))


def _move(folder: Path, target: Path) -> tuple[Path, ...]:
    """Everything in a folder into the target's, the target itself last: it refers to the others."""
    names = sorted((made.name for made in folder.iterdir()), key=lambda name: name == target.name)
    for name in names:
        made = folder / name
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        made.replace(target.with_name(name))
    return tuple(target.with_name(name) for name in reversed(names))
