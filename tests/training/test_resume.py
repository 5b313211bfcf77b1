"""Trainings that are killed, and what is left of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ifdd.checkpoint import load_checkpoint
from ifdd.training.callbacks import History
from ifdd.training.config import TrainingConfig
from ifdd.training.run import fit
from ifdd.training.storage import AtomicCheckpointIO, load_training_checkpoint, remove_partial_files

Make = Callable[..., TrainingConfig]

CHILD = """
import os, signal, sys
import pytorch_lightning as pl
import torch, yaml
from ifdd.training.config import TrainingConfig
from ifdd.training.run import fit

torch.set_num_threads(1)
settings, out, how = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class KilledInAnEpoch(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if trainer.current_epoch == 1 and batch_index == 1:
            die()

save, saved = torch.save, []
def killed_while_writing(content, file):
    saved.append(content)
    if content["epoch"] == 1 and file.name.split("/")[-1].startswith(".last"):
        file.write(b"half a file")
        file.flush()
        die()
    save(content, file)

if how == "writing":
    torch.save = killed_while_writing
callbacks = (KilledInAnEpoch(),) if how == "epoch" else ()
fit(TrainingConfig.from_dict(yaml.safe_load(open(settings))), out, callbacks=callbacks)
"""


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, through nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


@pytest.mark.parametrize(("how", "workers", "ema"), [("epoch", 1, None), ("writing", 0, 0.8)])
def test_a_killed_training_ends_as_an_uninterrupted_one(
    tiny_config: Make, tmp_path: Path, how: str, workers: int, ema: float | None
) -> None:
    config = tiny_config(ema_decay=ema, accumulate=2)
    config = replace(config, data=replace(config.data, workers=workers))
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(config.to_dict()))
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(settings), str(killed), how], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert load_training_checkpoint(killed / "last.ckpt")["epoch"] == 0
    assert bool(list(killed.glob(".*.part"))) == (how == "writing")

    resumed = fit(config, killed, resume=True)
    expected = fit(config, whole)
    assert resumed.epoch == expected.epoch
    a, b = (load_training_checkpoint(folder / "last.ckpt") for folder in (killed, whole))
    for part in ("state_dict", "optimizer_states", "epoch", "global_step", "ifdd"):
        assert_equal(a[part], b[part], part)
    if ema is not None:
        assert_equal(a["current_model_state"], b["current_model_state"])
    exported = (
        load_checkpoint(folder / "model.safetensors").model.state_dict() for folder in (killed, whole)
    )
    assert_equal(*exported)
    assert not list(killed.glob(".*.part"))


def test_an_epoch_that_is_saved_is_reported_once(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes after the checkpoint of the second epoch and before its row."""
    write = History.write

    def interrupted(history: History) -> None:
        if len(history.rows) == 2:
            raise KeyboardInterrupt
        write(history)

    def epochs() -> list[str]:
        return [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]

    monkeypatch.setattr(History, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config(epochs=2), tmp_path)
    assert (load_training_checkpoint(tmp_path / "last.ckpt")["epoch"], epochs()) == (1, ["1"])
    monkeypatch.setattr(History, "write", write)
    fit(tiny_config(epochs=2), tmp_path, resume=True)
    assert epochs() == ["1", "2"], "though no epoch was left to train"


def test_an_interrupted_write_keeps_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.ckpt"
    storage = AtomicCheckpointIO()
    storage.save_checkpoint({"ifdd": {"n": 1}, "value": torch.ones(3)}, target)

    def full(content: object, file: Any) -> None:
        file.write(b"some")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        storage.save_checkpoint({"ifdd": 2}, target)
    assert storage.load_checkpoint(target)["ifdd"] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        storage.save_checkpoint({}, target, storage_options={})


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.ckpt.123.part", "last.ckpt", "notes.part"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "notes.part"]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_what_is_no_checkpoint_is_refused_and_never_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_training_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.ckpt: not a training checkpoint"):
        load_training_checkpoint(tmp_path / "text.ckpt")
    torch.save({"ifdd": Malicious()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: not a training checkpoint"):
        load_training_checkpoint(tmp_path / "evil.ckpt")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of an ifdd training"):
        load_training_checkpoint(tmp_path / "other.ckpt")
