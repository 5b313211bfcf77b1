"""The examples run, on the smallest networks and videos that show something."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ifdd import IFDD, IFDDConfig
from ifdd.checkpoint import load_checkpoint, save_checkpoint
from torchvision_mvit import clips, small

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    network = IFDD(IFDDConfig(num_classes=2, backbone="mvit_nano", image_size=32, clip_frames=8))
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, network.eval(), ("calm", "glad"), {"stride": 1, "short": "repeat_last"})
    return str(path)


def videos(folder: Path, count: int) -> list[str]:
    """Folders of eight frames each."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, 8, 32, 32, 3), dtype=np.uint8)
    for number, video in enumerate(drawn):
        (folder / str(number)).mkdir(parents=True)
        for place, frame in enumerate(video):
            Image.fromarray(frame).save(folder / str(number) / f"{place}.png")
    return [str(folder / str(number)) for number in range(count)]


def test_every_example_is_listed_and_run() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for file in EXAMPLES.glob("*.py"):
        assert f"({file.name})" in listed
        assert f'"{file.stem}"' in Path(__file__).read_text()


def test_op_in_a_network() -> None:
    module = example("op_in_a_network")
    assert 0.5 < module.main() < 5.0


def test_faster_mvit() -> None:
    assert 0 < example("faster_mvit").main(small(2), clips(1)) < 1e-4


def test_predict_videos(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = videos(tmp_path, 2)
    found = example("predict_videos").main(checkpoint, [*paths, str(tmp_path / "missing")])
    assert list(found) == paths
    assert set(found.values()) <= {"calm", "glad"}
    assert "missing: " in capsys.readouterr().out


def test_train_on_a_list(tmp_path: Path) -> None:
    lines = [f"{path} {number % 2}" for number, path in enumerate(videos(tmp_path / "v", 12))]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    written = example("train_on_a_list").main(
        str(tmp_path / "train.txt"), "calm,glad", str(tmp_path / "run"), epochs=1
    )
    assert load_checkpoint(written).class_names == ("calm", "glad")


@pytest.mark.slow
def test_export_network(checkpoint: str, tmp_path: Path) -> None:
    logits = example("export_network").main(checkpoint, str(tmp_path / "tiny.pt2"))
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()
