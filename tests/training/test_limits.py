"""Runs that end by a time or a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ifdd.cli import main
from ifdd.training import run
from ifdd.training.callbacks import RunLimits
from ifdd.training.config import TrainingConfig
from ifdd.training.module import TrainingError
from ifdd.training.run import fit
from ifdd.training.storage import load_training_checkpoint

Make = Callable[..., TrainingConfig]


def test_a_run_of_some_steps_goes_on_as_if_it_had_not_ended(tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config()  # three steps an epoch
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    with pytest.raises(TrainingError, match="--limit_steps 2 ended it before an epoch was over"):
        fit(config, cut, limit_steps=2)
    assert not cut.exists()
    result = fit(config, cut, limit_steps=4)
    assert (result.limit, load_training_checkpoint(cut / "last.ckpt")["global_step"]) == (
        "--limit_steps 4",
        3,
    )
    # A limit at the end of an epoch loses nothing.
    assert fit(config, cut, resume=True, limit_steps=3).limit == "--limit_steps 3"
    assert load_training_checkpoint(cut / "last.ckpt")["global_step"] == 6
    assert fit(config, cut, resume=True, limit_steps=3).limit is None
    fit(config, whole)
    ends = [load_training_checkpoint(place / "last.ckpt")["state_dict"] for place in (cut, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_a_run_ends_after_the_last_epoch_that_fits(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    # The clock is read 5 times in an epoch of three steps.
    monkeypatch.setattr(run, "RunLimits", lambda seconds, steps: RunLimits(seconds, steps, clock))
    result = fit(tiny_config(), tmp_path / "run", max_time=timedelta(seconds=13))
    assert result.limit == "--max_time (13 s)"
    assert load_training_checkpoint(tmp_path / "run" / "last.ckpt")["epoch"] == 1


def test_wrong_limits_and_loggers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["fit", "--data", "synthetic", "--out", str(tmp_path / "run"), "--device", "cpu"]
    for option, value, text in (
        ("--max_time", "2h", "--max_time: expected DD:HH:MM:SS, got '2h'"),
        ("--max_time", "00:00:00:00", "--max_time: expected more than no time"),
        ("--limit_steps", "0", "--limit_steps: expected at least 1, got 0"),
        ("--logger", "NoSuchLogger", "--logger: "),
    ):
        assert main([*command, option, value]) == 2
        found = capsys.readouterr().err
        assert text in found
        assert found.count("\n") == 1


def test_further_loggers_are_made_as_lightning_makes_them(tmp_path: Path) -> None:
    from ifdd.cli.fit import _loggers

    text = f"{{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}, name: mine}}}}"
    (logger,) = _loggers(text)
    assert (type(logger).__name__, logger.name, logger.save_dir) == ("CSVLogger", "mine", str(tmp_path))
    assert _loggers(None) == []
