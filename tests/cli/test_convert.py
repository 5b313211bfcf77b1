from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.original import OriginalIFDD
from ifdd.checkpoint import load_checkpoint, load_pretrained
from ifdd.cli import COMMANDS
from ifdd.cli.convert import class_list
from ifdd.config import IFDDConfig
from ifdd.model import IFDD

Run = Callable[..., Any]
OPTIONS = (
    *("--model.backbone", "mvit_nano", "--model.embed_dim", "16", "--model.depths", "[1,1,2,1]"),
    *("--model.image_size", "64", "--model.clip_frames", "8"),
)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    torch.manual_seed(8)
    config = IFDDConfig(backbone="mvit_nano", embed_dim=16, image_size=64, clip_frames=8)
    model = OriginalIFDD(
        num_classes=7, clip_frames=8, image_size=64, embed_dim=16, depths=config.stage_depths, ladm_heads=8
    )
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "o.pth")
    return tmp_path / "o.pth"


def test_weights_of_the_original_become_a_checkpoint(ifdd: Run, original: Path, tmp_path: Path) -> None:
    target = tmp_path / "c.safetensors"
    result = ifdd("convert", original, target, "--classes", "dfew", *OPTIONS)
    assert result.code == 0, result.err
    saved = load_checkpoint(target)
    assert saved.class_names == ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    expected = IFDD(saved.config)
    report = load_pretrained(expected, original)
    for name, value in expected.state_dict().items():
        assert torch.equal(saved.model.state_dict()[name], value), name
    assert report.dropped
    for name in report.dropped:
        assert f"not used: {name}" in result.out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--classes", "a,b,c"), "the classifier has 7 classes, --classes names 3"),
        (("--classes", "dfew", "--model.depths", "[1,1,1,1]"), "o.pth"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    ifdd: Run, original: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    target = tmp_path / "c.safetensors"
    result = ifdd("convert", original, target, *OPTIONS, *arguments)
    assert result.code == 1
    assert text in result.err
    assert len(result.err.splitlines()) == 1
    assert not target.exists()


def test_the_class_list_must_be_given(ifdd: Run, original: Path, tmp_path: Path) -> None:
    result = ifdd("convert", original, tmp_path / "c.safetensors")
    assert result.code == 2
    assert "--classes is missing: " in result.err
    assert class_list("MAFW")[-1] == "disappointment"
    assert class_list(" x , y") == ("x", "y")
    assert "convert" in COMMANDS
