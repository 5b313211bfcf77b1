"""Checkpoints, history and estimates beside the steps."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ifdd.curves import draw_curves
from ifdd.training import callbacks
from ifdd.training.callbacks import History, ProgressBar, RunCheckpoint, TimeEstimate, duration
from ifdd.training.folder import run_folder
from ifdd.training.module import Recogniser
from ifdd.whole import write_whole


def test_the_later_of_equal_epochs_is_the_best(tmp_path: Path) -> None:
    best = RunCheckpoint(tmp_path / "best.ckpt", monitor="val/uar")
    trainer: Any = SimpleNamespace()
    assert best.check_monitor_top_k(trainer, torch.tensor(0.5))
    best.kth_best_model_path = "best"
    best.best_k_models = {"best": torch.tensor(0.5)}
    assert best.check_monitor_top_k(trainer, torch.tensor(0.5))
    assert best.check_monitor_top_k(trainer, torch.tensor(0.6))
    assert not best.check_monitor_top_k(trainer, torch.tensor(0.4))
    assert not best.check_monitor_top_k(trainer, None)


def test_a_moved_run_keeps_its_best_score(tmp_path: Path) -> None:
    before = RunCheckpoint(tmp_path / "old" / "best.ckpt", monitor="val/uar")
    path = str(tmp_path / "old" / "best.ckpt")
    before.best_model_score = before.kth_value = torch.tensor(0.7)
    before.best_model_path = before.kth_best_model_path = path
    before.best_k_models = {path: torch.tensor(0.7)}
    after = RunCheckpoint(tmp_path / "new" / "best.ckpt", monitor="val/uar")
    after.load_state_dict(before.state_dict())
    here = str(tmp_path / "new" / "best.ckpt")
    assert (after.best_model_path, after.kth_best_model_path) == (here, here)
    assert after.best_k_models == {here: torch.tensor(0.7)}
    assert not after.check_monitor_top_k(SimpleNamespace(), torch.tensor(0.6))  # type: ignore[arg-type]


def epoch(history: History, number: int, saved: bool = True, **metrics: float) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, current_epoch=number, callback_metrics={**metrics})
    module = Recogniser.__new__(Recogniser)
    torch.nn.Module.__init__(module)
    module.schedule = lambda e: 0.1 / (e + 1)  # type: ignore[assignment]
    history.on_train_epoch_end(trainer, module)
    if saved:
        history.write()


def test_the_history_of_a_resumed_training_is_one_table(tmp_path: Path) -> None:
    first = History(tmp_path)
    epoch(first, 0, **{"train/loss": 2.0, "val/uar": 0.25, "val/war": 0.5})
    state = first.state_dict()
    epoch(first, 1, saved=False, **{"train/loss": 9.0})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"], "no epoch without its checkpoint"
    second = History(tmp_path)
    second.load_state_dict(state)
    epoch(second, 1, **{"train/loss": float("nan"), "train/lifting": 1.0})
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["training_loss"], row["held_out_uar"]) for row in rows] == [
        ("1", "2.0", "0.25"),
        ("2", "", ""),
    ]
    assert (rows[1]["lifting_loss"], rows[1]["learning_rate"]) == ("1.0", "0.05")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert not list(tmp_path.glob(".*"))


def test_short_epochs_share_a_drawing_and_the_last_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(callbacks, "draw_curves", lambda rows, path: drawn.append(len(rows)))
    history = History(tmp_path, pause=3600)
    for number in range(3):
        epoch(history, number, **{"train/loss": 1.0})
    assert drawn == [1]
    history.on_fit_end(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    history.on_exception(SimpleNamespace(), SimpleNamespace(), KeyboardInterrupt())  # type: ignore[arg-type]
    assert drawn == [1, 3]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_curves_of_any_length_and_of_nothing_held_out(tmp_path: Path, suffix: str) -> None:
    rows = [{"epoch": n, "training_loss": 1 / n, "learning_rate": 1e-4} for n in range(1, 90)]
    for count in (1, 89):
        path = draw_curves(rows[:count], tmp_path / f"c{suffix}")
        assert path.stat().st_size > 3000
    assert [file.name for file in tmp_path.iterdir()] == [f"c{suffix}"]


def test_a_drawing_that_fails_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_curves([{"epoch": 1, "training_loss": 1.0}], tmp_path / "c.png")
    before = path.read_bytes()

    def full(figure: Any, part: Path, **_: Any) -> None:
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("ifdd.curves.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw_curves([{"epoch": 1, "training_loss": 2.0}], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.png"]


def test_epochs_count_from_one_in_the_bar() -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=2, sanity_checking=False)  # type: ignore[assignment]
    assert bar._get_train_description(1).strip() == "Epoch 2/2"


def test_the_time_is_told_after_the_first_steps_and_after_the_first_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    said: list[str] = []
    estimate = TimeEstimate(said.append, steps=2)
    module: Any = SimpleNamespace()
    for number in range(3):
        trainer: Any = SimpleNamespace(max_epochs=3, current_epoch=number, num_training_batches=10)
        estimate.on_train_epoch_start(trainer, module)
        for _ in range(10):
            clock[0] += 60.0 if number == 0 and not said and clock[0] == 100.0 else 6.0
            estimate.on_train_batch_end(trainer)
        clock[0] += 1000.0
    assert said == [
        "6 s a batch: about 3 min to go, without validation",
        "the first epoch took 19 min; about 37 min to go",
    ]


def test_a_resumed_training_of_short_epochs_is_told_the_time_once() -> None:
    said: list[str] = []
    estimate = TimeEstimate(said.append, steps=2)
    for number in range(5, 8):
        trainer: Any = SimpleNamespace(max_epochs=8, current_epoch=number, num_training_batches=2)
        estimate.on_train_epoch_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
        for _ in range(2):
            estimate.on_train_batch_end(trainer)
    assert said == ["epoch 6 took 0 s; about 0 s to go"]


def test_times_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.4, 89, 91, 5000, 12_000, 200_000)]
    assert said == ["0 s", "89 s", "2 min", "83 min", "3 h 20 min", "2 days 7 h"]


def test_a_text_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.txt", "old")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("ifdd.whole.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_taken_back_until_it_holds_something(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"

    def interrupted(*names: str) -> None:
        with run_folder(out, "kept"):
            for name in names:
                (out / name).parent.mkdir(exist_ok=True)
                (out / name).touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted("logs/x", "y")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted("y", "kept")
    assert {path.name for path in out.iterdir()} == {"y", "kept"}
