from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from ifdd import demo
from ifdd.checkpoint import load_checkpoint
from ifdd.training.run import build_model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    network = {**demo.NETWORK, "embed_dim": 8, "depths": [1, 1, 1, 1], "image_size": 32, "split_pool": 2}
    monkeypatch.setattr(demo, "NETWORK", network)


def folders(options: Namespace) -> list[Path]:
    """Of the trainings that there are."""
    return [path for name in demo.recipe(options) if (path := demo.folder(options, name)).exists()]


def test_the_demo_runs_from_training_to_figures(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path / "d"), "--epochs", "1", "--steps_per_epoch", "2"]
    arguments += ["--batch", "7", "--test_size", "14", "--workers", "0"]
    assert demo.main(arguments) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert set(report["models"]) == {"IFDD", "backbone", "one frame"}
    start = load_checkpoint(tmp_path / "d" / "start" / "model.safetensors")
    assert start.config.lifting == "none"
    assert all(model["clips"] == 14 for model in report["models"].values())
    for figure in ("training", "confusion", "recall", "explain_drawn"):
        path = tmp_path / "d" / f"{figure}.png"
        assert str(path) in out
        assert path.stat().st_size > 10_000
    plain = load_checkpoint(tmp_path / "d" / "backbone" / "model.safetensors").config
    assert (plain.split, plain.lifting) == ("even_odd", "none")
    full = load_checkpoint(tmp_path / "d" / "IFDD" / "model.safetensors").config
    assert (full.split, full.lifting) == ("interpolate", "update_first")
    if demo.real_clip() is None:
        assert "No real clip" in out
    else:
        assert "says nothing true about the man" in out
        assert (tmp_path / "d" / "explain_real.png").exists()
    assert demo.main(arguments) == 2
    assert "already holds a demonstration" in capsys.readouterr().err
    recipe = demo.recipe(demo.make_parser().parse_args(["--out", str(tmp_path / "d")]))
    begun = build_model(recipe["IFDD"], start.class_names).state_dict()
    for name, value in start.model.state_dict().items():
        if name.startswith(("embedding.", "backbone.", "pyramid.")):
            assert torch.equal(begun[name], value), f"IFDD does not begin with the common start: {name}"
    seen = []
    monkeypatch.setattr(demo, "run", lambda options: seen.append(folders(options)) or 0)
    assert demo.main([*arguments, "--overwrite"]) == 0
    assert seen == [[]]


def test_without_the_package_of_the_real_clip_the_demo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.real_clip() is None


def test_minutes_set_the_number_of_steps_of_all_three_alike() -> None:
    parse = demo.make_parser().parse_args
    short, long = (demo.recipe(parse(["--out", "x", "--minutes", m])) for m in ("5.5", "11"))
    assert 2 * short["IFDD"].optim.epochs == long["IFDD"].optim.epochs
    for recipe in (short, long):
        three = [config for name, config in recipe.items() if name != demo.START]
        assert len({config.optim for config in three}) == 1
        assert len({config.data.train_size for config in three}) == 1
        assert {config.init_part for config in three} == {"backbone"}
    assert long["one frame"].data.one_frame
    assert not long["backbone"].data.one_frame
