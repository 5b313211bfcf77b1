from __future__ import annotations

import json

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassRecall

from ifdd.training.metrics import scores_from_confusion
from ifdd.training.windows import collate_windows, mean_over_windows


def test_war_and_uar_by_hand() -> None:
    confusion = torch.tensor([[8, 2, 0], [1, 0, 1], [0, 3, 1]])
    scores = scores_from_confusion(confusion, ("a", "b", "c"))
    assert scores.war == pytest.approx(9 / 16)
    assert scores.recall == pytest.approx((0.8, 0.0, 0.25))
    assert scores.uar == pytest.approx((0.8 + 0.0 + 0.25) / 3)


def test_a_class_without_clips_has_no_recall_and_does_not_count() -> None:
    scores = scores_from_confusion(torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]]), ("a", "b", "c"))
    assert scores.recall[1] is None
    assert scores.uar == pytest.approx((0.75 + 0.5) / 2)
    assert json.loads(json.dumps(scores.to_dict()))["recall"] == {"a": 0.75, "b": None, "c": 0.5}


def test_agreement_with_torchmetrics_on_random_predictions() -> None:
    generator = torch.Generator().manual_seed(11)
    labels = torch.randint(0, 5, (300,), generator=generator)
    predicted = torch.randint(0, 5, (300,), generator=generator)
    scores = scores_from_confusion(MulticlassConfusionMatrix(5)(predicted, labels), tuple("abcde"))
    assert scores.war == pytest.approx(float(MulticlassAccuracy(5, average="micro")(predicted, labels)))
    assert scores.uar == pytest.approx(float(MulticlassRecall(5, average="macro")(predicted, labels)))
    assert int(scores.confusion.sum()) == 300


@pytest.mark.parametrize(
    ("confusion", "text"),
    [
        (torch.ones(2, 3), r"confusion must have shape \(3, 3\), got \(2, 3\)"),
        (torch.zeros(3, 3), "counts no clip"),
    ],
)
def test_useless_matrices_are_refused(confusion: torch.Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        scores_from_confusion(confusion, ("a", "b", "c"))


def test_windows_of_a_video_are_averaged_as_logits() -> None:
    torch.manual_seed(5)
    one, many = torch.rand(3, 4, 2, 2), torch.rand(3, 3, 4, 2, 2)
    batch = collate_windows([(one, 1), (many, 4)], classes=5)
    assert batch.clips.shape == (4, 3, 4, 2, 2)
    assert batch.labels.tolist() == [1, 4]
    assert torch.equal(batch.clips[0], one)
    assert torch.equal(batch.clips[1:], many)
    logits = torch.randn(4, 6)
    mean = mean_over_windows(logits, batch.windows)
    torch.testing.assert_close(mean, torch.stack([logits[0], (logits[1] + logits[2] + logits[3]) / 3]))
