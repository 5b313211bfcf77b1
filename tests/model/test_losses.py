"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch

from ifdd.losses import IFDDLoss, soft_target_cross_entropy
from ifdd.model import IFDDOutput


def random_output(batch: int = 4, classes: int = 5) -> IFDDOutput:
    # Residuals on both sides of the smooth-L1 corner at 1.
    return IFDDOutput(torch.randn(batch, classes), 2 * torch.randn(batch, 7, 7), torch.randn(batch, 8))


def test_soft_targets() -> None:
    logits, target = torch.randn(6, 5), torch.rand(6, 5).softmax(1)
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(soft_target_cross_entropy(logits, target), expected)


def test_labels_are_one_hot_targets() -> None:
    logits, labels = torch.randn(6, 5), torch.randint(5, (6,))
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(
        soft_target_cross_entropy(logits, labels), soft_target_cross_entropy(logits, one_hot)
    )


def test_low_precision_logits_are_widened() -> None:
    logits, target = torch.randn(6, 5), torch.rand(6, 5).softmax(1)
    loss = soft_target_cross_entropy(logits.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_target_cross_entropy(logits.bfloat16().float(), target))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_parts(reduction: str) -> None:
    output, target = random_output(), torch.rand(4, 5).softmax(1)
    parts = IFDDLoss(lifting_weight=0.3, lifting_reduction=reduction)(output, target)
    r = output.lifting_residual.abs()
    clips = torch.where(r < 1, 0.5 * r * r, r - 0.5).mean((1, 2))
    expected = 0.3 * (clips.sum() if reduction == "sum" else clips.mean())
    torch.testing.assert_close(parts.lifting, expected)
    torch.testing.assert_close(parts.classification, soft_target_cross_entropy(output.logits, target))
    torch.testing.assert_close(parts.total, parts.classification + parts.lifting)
    assert all(part.ndim == 0 for part in parts)


def test_default_is_the_paper() -> None:
    output, target = random_output(), torch.randint(5, (4,))
    loss = IFDDLoss()
    assert (loss.lifting_weight, loss.lifting_reduction) == (0.1, "sum")
    torch.testing.assert_close(loss(output, target).lifting, IFDDLoss(0.1, "sum")(output, target).lifting)
    assert "sum" in repr(loss)


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.randn(4, 5), torch.rand(4, 6)),
        (torch.randn(4, 5), torch.zeros(3, dtype=torch.int64)),
        (torch.randn(4, 5), torch.zeros(4, 5, dtype=torch.int64)),
        (torch.randn(4, 5), torch.zeros(4)),
        (torch.randn(0, 5), torch.rand(0, 5)),
        (torch.randn(5), torch.rand(5)),
    ],
)
def test_refuses_other_shapes(logits: torch.Tensor, target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"soft_target_cross_entropy: (logits|target) must be"):
        soft_target_cross_entropy(logits, target)


def test_refuses_other_settings() -> None:
    with pytest.raises(ValueError, match="lifting_weight must not be negative; got -1"):
        IFDDLoss(lifting_weight=-1)
    with pytest.raises(ValueError, match="lifting_weight"):
        IFDDLoss(lifting_weight=float("nan"))
    with pytest.raises(ValueError, match=r"lifting_reduction must be one of .*'max'"):
        IFDDLoss(lifting_reduction="max")


def test_cross_entropy_of_each_clip_by_vmap() -> None:
    logits, labels = torch.randn(4, 7), torch.tensor([0, 6, 2, 3])
    each = torch.func.vmap(lambda row, label: soft_target_cross_entropy(row[None], label[None]))
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(each(logits, labels), wanted)
