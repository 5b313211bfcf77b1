"""WAR, UAR and the per-class table from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The scores of a test.

    ``war`` = accuracy = trace / total. ``uar`` = mean over the classes that occur of recall_k =
    confusion[k, k] / sum_j confusion[k, j]; a class without any clip has no recall (``None``) and does not
    count. ``confusion`` (K, K) int64, rows true, columns predicted.
    """

    war: float
    uar: float
    recall: tuple[float | None, ...]
    confusion: Tensor
    class_names: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes without any clip."""
        return tuple(name for name, r in zip(self.class_names, self.recall, strict=True) if r is None)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return {
            "war": self.war,
            "uar": self.uar,
            "recall": dict(zip(self.class_names, self.recall, strict=True)),
            "classes": list(self.class_names),
            "classes_in_uar": len(self.class_names) - len(self.missing),
            "confusion": self.confusion.tolist(),
            "clips": int(self.confusion.sum()),
        }


def scores_from_confusion(confusion: Tensor, class_names: tuple[str, ...]) -> Scores:
    """WAR and UAR of a confusion matrix.

    Args:
        confusion: (K, K) counts, rows true classes, columns predicted ones.
        class_names: K names.

    Raises:
        ValueError: if the matrix has another shape, or counts nothing.
    """
    k = len(class_names)
    if confusion.shape != (k, k):
        raise ValueError(f"confusion must have shape ({k}, {k}), got {tuple(confusion.shape)}")
    counts = confusion.to("cpu", torch.int64)
    support = counts.sum(1)
    if int(support.sum()) == 0:
        raise ValueError("confusion counts no clip: nothing was evaluated")
    hits = counts.diagonal()
    recall = tuple(int(h) / int(n) if n else None for h, n in zip(hits, support, strict=True))
    present = [r for r in recall if r is not None]
    war = int(hits.sum()) / int(support.sum())
    return Scores(war, sum(present) / len(present), recall, counts, tuple(class_names))
