"""The two training losses and their sum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ifdd._labels import check_labels
from ifdd.model import IFDDOutput
from ifdd_kernels import lifting_loss
from ifdd_kernels._serialised import serialisable

REDUCTIONS = ("sum", "mean")
#: Instead of PyTorch's -100: no label is left out of the mean.
IGNORED = torch.iinfo(torch.int64).min


def soft_target_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over clips of -sum_k target_k log softmax(logits)_k, computed in at least float32.

    Args:
        logits: (B, K), B >= 1.
        target: (B, K) floating-point class weights (MixUp, CutMix, label smoothing), or (B,) int64 labels.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes or types that do not fit, no clip at all (the mean would be NaN), or a label
            outside 0..K-1. Labels on a GPU are not read, which would wait for it: there the device asserts.
    """
    if logits.ndim != 2 or logits.shape[0] == 0:
        raise ValueError(
            f"soft_target_cross_entropy: logits must be (B, K), B >= 1; got {tuple(logits.shape)}"
        )
    labels = target.dtype == torch.int64 and tuple(target.shape) == (logits.shape[0],)
    weights = target.is_floating_point() and target.shape == logits.shape
    if not labels and not weights:
        raise ValueError(
            f"soft_target_cross_entropy: target must be floating-point {tuple(logits.shape)} or int64 "
            f"({logits.shape[0]},); got {target.dtype} {tuple(target.shape)}"
        )
    if labels:
        check_labels(target, logits.shape[1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    target = target if labels else target.to(wide)
    return nn.functional.cross_entropy(logits.to(wide), target, ignore_index=IGNORED)


@serialisable
class LossParts(NamedTuple):
    """Three scalars: `total` = `classification` + `lifting` (its weight included)."""

    total: torch.Tensor
    classification: torch.Tensor
    lifting: torch.Tensor


class IFDDLoss(nn.Module):
    """Classification loss plus lifting loss: weight * reduce over clips of mean over (H, W) of smooth L1.

    Args:
        lifting_weight: factor of the lifting loss, 0.1 in the paper.
        lifting_reduction: `sum` over the clips of a batch, as in the authors' implementation, so that the
            loss grows with the batch; or `mean`.

    Raises:
        ValueError: a negative weight or an unknown reduction.
    """

    def __init__(self, lifting_weight: float = 0.1, lifting_reduction: str = "sum") -> None:
        super().__init__()
        if not lifting_weight >= 0.0:
            raise ValueError(f"IFDDLoss: lifting_weight must not be negative; got {lifting_weight}")
        if lifting_reduction not in REDUCTIONS:
            raise ValueError(
                f"IFDDLoss: lifting_reduction must be one of {REDUCTIONS}; got {lifting_reduction!r}"
            )
        self.lifting_weight, self.lifting_reduction = lifting_weight, lifting_reduction

    def forward(self, output: IFDDOutput, target: torch.Tensor) -> LossParts:
        """Network output and targets ((B, K) weights or (B,) labels) -> the loss and its parts."""
        classification = soft_target_cross_entropy(output.logits, target)
        lifting = lifting_loss(
            output.lifting_residual, weight=self.lifting_weight, reduction=self.lifting_reduction
        )
        return LossParts(classification + lifting, classification, lifting)

    def extra_repr(self) -> str:
        """Weight and reduction."""
        return f"lifting_weight={self.lifting_weight}, lifting_reduction={self.lifting_reduction}"


class WithLoss(nn.Module):
    """A network and its loss as one module: what a training step computes of a mixed batch.

    Args:
        model: returns an :class:`ifdd.IFDDOutput`.
        criterion: the loss.
    """

    def __init__(self, model: nn.Module, criterion: IFDDLoss) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, clips: torch.Tensor, targets: torch.Tensor) -> LossParts:
        """Clips (B, 3, T, H, W) and targets (B, K) -> the loss; its parts have no gradient of their own."""
        parts: LossParts = self.criterion(self.model(clips), targets)
        return LossParts(parts.total, parts.classification.detach(), parts.lifting.detach())
