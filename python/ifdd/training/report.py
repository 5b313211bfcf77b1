"""Writes the results of a test: the scores as JSON and the confusion matrix as a figure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ifdd.checkpoint import Checkpoint
from ifdd.figures import confusion_matrix
from ifdd.training.config import DEFAULTS, DataConfig
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.whole import write_whole

SCORES = "scores.json"
FIGURE = "confusion.png"
_DECIDING = ("stride", "short", "sampling", "clips", "crop", "one_frame", "test_size")
"""Settings of the data that decide which clips of a test set are seen, and how."""


def write_report(out: Path, scores: Scores, path: Path, checkpoint: Checkpoint, data: DataConfig) -> None:
    """Writes ``confusion.png`` and then ``scores.json``, so that the latter stands for a whole test.

    Args:
        out: folder, made if missing.
        scores: of the test.
        path: file of the weights.
        checkpoint: what was read from it.
        data: the data set it was tested on.
    """
    out.mkdir(parents=True, exist_ok=True)
    place = Path(data.test_list).name if data.test_list else data.name
    # Checkpoints of the same name are distinguished by the folders of their runs.
    title = f"{place}: {Path(*path.absolute().parts[-2:])}"
    confusion_matrix(scores, out / FIGURE, title=title)
    report = {
        "checkpoint": str(path),
        "weights": checkpoint.origin,
        **_description(data),
        **scores.to_dict(),
    }
    write_whole(out / SCORES, json.dumps(report, indent=2) + "\n")


def holds_this_test(out: Path, path: Path, data: DataConfig) -> bool:
    """Whether the scores in a folder are of this file of weights (which may have been trained longer since)
    and this test. Of an unreadable file and of one that does not say, they are not.

    Args:
        out: a folder with ``scores.json``.
        path: file of the weights.
        data: the data set.
    """
    try:
        report = json.loads((out / SCORES).read_text(encoding="utf-8"))
        stated = {name: report[name] for name in ("checkpoint", *_description(data))}
    except (KeyError, TypeError, ValueError):
        return False
    return _resolved(stated) == _resolved({"checkpoint": str(path), **_description(data)})


def _description(data: DataConfig) -> dict[str, Any]:
    """All that decides which clips of which test set are seen."""
    return {
        "data": data.name,
        "fold": data.fold if data.name in ("dfew", "mafw") else None,
        "root": data.root,
        "test_list": data.test_list,
        "options": {name: getattr(data, name) for name in _DECIDING if getattr(data, name) != DEFAULTS[name]},
    }


def _resolved(description: dict[str, Any]) -> dict[str, Any]:
    """With paths that can be compared."""
    paths = {name: description[name] for name in ("checkpoint", "root", "test_list") if description[name]}
    return {**description, **{name: os.path.realpath(path) for name, path in paths.items()}}


def read_scores(file: Path) -> Scores:
    """The scores of a ``scores.json``.

    Raises:
        ValueError: it is not one.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return scores_from_confusion(torch.tensor(report["confusion"]), tuple(report["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: no scores of a test ({error}); remove it to test again") from error
