"""Writes the results of a test: the scores as JSON and the confusion matrix as a figure."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ifdd.checkpoint import Checkpoint
from ifdd.figures import confusion_matrix
from ifdd.training.config import DataConfig
from ifdd.training.metrics import Scores, scores_from_confusion
from ifdd.whole import write_whole

SCORES = "scores.json"
FIGURE = "confusion.png"


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
        "data": data.name,
        "fold": data.fold if data.name in ("dfew", "mafw") else None,
        "root": data.root,
        "test_list": data.test_list,
        **scores.to_dict(),
    }
    write_whole(out / SCORES, json.dumps(report, indent=2) + "\n")


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
