"""All folds of a benchmark: stopped anywhere, gone on with, and the table at the end."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from ifdd.cli import main
from ifdd.data.lists import MAFW_CLASSES
from ifdd.training import folds as folds_module
from ifdd.training.folds import FOLDS, fold_folder, read_table
from ifdd.training.storage import load_training_checkpoint
from rank_program import NETWORK

OPTIONS = [
    *("--epochs", "1", "--warmup", "none", "--validation", "0", "--batch_size", "7", "--workers", "0"),
    *("--device", "cpu", "--progress", "false", "--augment", "false"),
    *(f"--model.{name}={value}" for name, value in NETWORK.items()),
]


def write_clip(folder: Path, names: list[str], seed: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(pixels).save(folder / name)


def dfew(root: Path) -> Path:
    for part, size in (("train", 7), ("test", 3)):
        lists = root / "EmoLabel_DataSplit" / f"{part}(single-labeled)"
        lists.mkdir(parents=True)
        for fold in FOLDS:
            # Each fold tests another number of clips.
            rows = [f"{number},{number}" for number in range(1, (size if part == "train" else fold) + 1)]
            (lists / f"set_{fold}.csv").write_text("\n".join(["video_name,label", *rows]) + "\n")
    for number in range(1, 8):
        frames = [f"{frame}.jpg" for frame in range(1, 17)]
        write_clip(root / "Clip/clip_224x224_16f" / f"{number:05d}", frames, number)
    return root


def mafw(root: Path) -> Path:
    for fold in FOLDS:
        folder = root / "Train & Test Set/single/no_caption" / f"set_{fold}"
        folder.mkdir(parents=True)
        for part, size in (("train", 11), ("test", fold)):
            names = [f"{number:05d}.mp4 {MAFW_CLASSES[number - 1]}\n" for number in range(1, size + 1)]
            (folder / f"{part}.txt").write_text("".join(names))
    for number in range(1, 12):
        write_clip(root / "data/frames" / f"{number:05d}", [f"{n:05d}.png" for n in range(1, 9)], number)
    return root


@pytest.mark.nightly
def test_a_fold_on_two_devices(tmp_path: Path) -> None:
    """Two folds, each of two processes that Lightning starts; the test is the first one's alone."""
    command = [sys.executable, "-m", "ifdd", "folds", "--data", "dfew", "--out", str(tmp_path / "out")]
    command += ["--root", str(dfew(tmp_path / "dfew")), "--folds", "[1,2]", "--devices", "2", *OPTIONS]
    command += ["--batch_size", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "folds.csv").open()))
    assert [row["fold"] for row in rows[:2]] == ["1", "2"]
    assert [row["clips"] for row in rows[:2]] == ["1", "2"]


def test_folds_refuse_one_fold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["folds", "--data", "dfew", "--out", "x", "--fold", "3"]) == 2
    assert "--fold: name folds with --folds [1,3]" in capsys.readouterr().err


def killed(*_: Any, **__: Any) -> None:
    """In the place of a process that is ended: nothing below may tidy up."""
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
def test_folds_that_are_stopped_twice_end_with_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["folds", "--data", "dfew", "--root", str(dfew(tmp_path / "dfew")), "--out", str(out), *OPTIONS]
    fit, evaluate = folds_module.fit, folds_module.evaluate
    trained: list[str] = []

    def noted(config: Any, folder: Path, **options: Any) -> Any:
        trained.append(folder.name)
        return fit(config, folder, **options)

    # Once between the training and the test of the second fold, once at the start of the third.
    monkeypatch.setattr(folds_module, "fit", noted)
    tests = iter([evaluate, killed, evaluate, evaluate, evaluate, evaluate])
    monkeypatch.setattr(folds_module, "evaluate", lambda *a, **k: next(tests)(*a, **k))
    assert main(command) == 130
    assert (fold_folder(out, 2) / "last.ckpt").exists()
    assert not (fold_folder(out, 2) / "scores.json").exists()
    monkeypatch.setattr(
        folds_module, "fit", lambda c, f, **o: killed() if f.name == "fold_3" else noted(c, f, **o)
    )
    assert main(command) == 130
    monkeypatch.setattr(folds_module, "fit", noted)
    assert main(command) == 0
    assert trained == ["fold_1", "fold_2", "fold_2", "fold_3", "fold_4", "fold_5"]
    assert "2 of 5 are done; to do: [3, 4, 5]" in capsys.readouterr().out

    reports = [json.loads((fold_folder(out, fold) / "scores.json").read_text()) for fold in FOLDS]
    assert [report["fold"] for report in reports] == list(FOLDS)
    rows = list(csv.DictReader((out / "folds.csv").open()))
    assert [row["fold"] for row in rows] == ["1", "2", "3", "4", "5", "mean", "deviation", "pooled"]
    assert [row["clips"] for row in rows] == ["1", "2", "3", "4", "5", "", "", "15"]
    for name in ("war", "uar"):
        values = [report[name] for report in reports]
        written = [float(row[name]) for row in rows]
        assert written[:7] == [*values, statistics.mean(values), statistics.stdev(values)]
    pooled = torch.tensor([report["confusion"] for report in reports]).sum(0)
    counts = list(csv.reader((out / "confusion.csv").open()))
    assert counts[0][1:] == [row[0] for row in counts[1:]] == reports[0]["classes"]
    assert [[int(value) for value in row[1:]] for row in counts[1:]] == pooled.tolist()
    assert float(rows[7]["war"]) == int(pooled.diagonal().sum()) / 15
    assert (out / "confusion.png").stat().st_size > 10_000

    # Nothing is done twice, and other settings are refused.
    assert main(command) == 0
    assert len(trained) == 6
    assert main([*command, "--learning_rate", "1"]) == 2
    assert "fold_1 was started with --learning_rate 0.0001 (now 1.0)" in capsys.readouterr().err
    # A table of some folds says so.
    (fold_folder(out, 4) / "scores.json").unlink()
    assert read_table(out).missing == (4,)


class Dies(pl.Callback):
    """Nothing of the process is left after its first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def run_until_killed(command: list[str], patch: Callable[[], None]) -> None:
    """Runs a command in a copy of this process that is to be killed."""
    process = os.fork()
    if not process:
        patch()
        main(command)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL


def kill_before_the_test_of_fold_2() -> None:
    tests = iter([folds_module.evaluate])

    def evaluate(*arguments: Any, **options: Any) -> Any:
        test = next(tests, None)
        if test is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return test(*arguments, **options)  # type: ignore[misc]

    folds_module.evaluate = evaluate


def kill_in_the_training_of_fold_4() -> None:
    fit = folds_module.fit

    def dying(config: Any, folder: Path, **options: Any) -> Any:
        return fit(config, folder, callbacks=(Dies(),) if folder.name == "fold_4" else (), **options)

    folds_module.fit = dying


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tree", [dfew, mafw])
def test_folds_that_are_killed_twice_end_with_the_same_table(
    tmp_path: Path, tree: Callable[[Path], Path]
) -> None:
    command = ["folds", "--data", tree.__name__, "--root", str(tree(tmp_path / "set")), *OPTIONS]
    killed = [*command, "--out", str(tmp_path / "killed")]
    run_until_killed(killed, kill_before_the_test_of_fold_2)
    assert not (tmp_path / "killed" / "fold_2" / "scores.json").exists()
    run_until_killed(killed, kill_in_the_training_of_fold_4)
    assert not (tmp_path / "killed" / "fold_4" / "last.ckpt").exists()
    assert main(killed) == 0
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    for name in ("folds.csv", "confusion.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    table = read_table(tmp_path / "killed")
    assert [int(scores.confusion.sum()) for scores in table.folds.values()] == [1, 2, 3, 4, 5]
    for fold in FOLDS:
        runs = (tmp_path / out / f"fold_{fold}" / "last.ckpt" for out in ("killed", "whole"))
        weights, expected = (load_training_checkpoint(run)["state_dict"] for run in runs)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_folds_of_mafw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["folds", "--data", "mafw", "--root", str(mafw(tmp_path / "mafw")), "--out", str(out), *OPTIONS]
    assert main([*command, "--folds", "[2,5]"]) == 0
    assert "not complete: folds 1, 3, 4 are missing" in capsys.readouterr().out
    assert read_table(out).pooled.confusion.sum() == 7
    assert len(read_table(out).pooled.class_names) == 11


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["folds", "--out", str(tmp_path / "out"), "--device", "cpu"]
    tree = ["--data", "dfew", "--root", str(tmp_path)]
    for more, text in (
        (["--data", "synthetic"], "--data must be dfew or mafw, which have folds, got synthetic"),
        ([*tree, "--folds", "[0,6]"], "--folds: expected some of [1, 2, 3, 4, 5], got [0, 6]"),
        ([*tree, "--at_once", "0"], "--at_once: expected at least 1, got 0"),
        ([*tree, "--at_once", "2", "--devices", "2"], "--at_once: each fold then trains on one device"),
    ):
        assert main([*options, *more]) == 2
        assert text in capsys.readouterr().err


def test_a_single_fold_has_no_deviation() -> None:
    scores = folds_module.scores_from_confusion(torch.eye(2, dtype=torch.int64), ("a", "b"))
    table = folds_module.FoldTable({3: scores}, scores)
    assert table.summary() == {"war": (1.0, None), "uar": (1.0, None)}
    assert table.missing == (1, 2, 4, 5)
