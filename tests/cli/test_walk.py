"""A newcomer's way: own videos in three classes are trained on, tested, resumed and trained longer."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ifdd.checkpoint import load_checkpoint
from ifdd.cli import main
from ifdd.training.callbacks import TimeEstimate
from ifdd.training.config import DataConfig
from ifdd.training.overlap import overlap_warning

from .conftest import TINY, write_video

Run = Callable[..., Any]
CLASSES = ("calm", "glad", "cross")
NETWORK = tuple(
    text
    for name, value in TINY.items()
    for text in (f"--model.{name.replace('_', '-')}", str(value).replace("(", "[").replace(")", "]"))
)
QUIET = ("--progress", "false", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 videos of three classes; the last 6 are for testing."""
    folder = tmp_path_factory.mktemp("own")
    lines = [f"{write_video(folder / f'clip {n}.mp4', 10 + n, 32).name},{n % 3}\n" for n in range(20)]
    (folder / "train.csv").write_text("".join(lines[:14]))
    (folder / "test.csv").write_text("".join(lines[14:]))
    return folder


class Trained(NamedTuple):
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two epochs, and what the command said."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    arguments = (
        *("fit", "--out", folder, "--data", "list", "--root", videos, "--train-list", videos / "train.csv"),
        *("--classes", f"[{','.join(CLASSES)}]", "--epochs", "2", "--batch-size", "4", "--validation", "0.2"),
        *("--learning-rate", "1e-3", *NETWORK, *QUIET),
    )
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    assert code == 0, err.getvalue()
    return Trained(folder, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(trained: Trained) -> Path:
    return trained.folder


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_train(trained: Trained, videos: Path) -> None:
    run = trained.folder
    said = {line[:14].strip(): line[15:] for line in trained.out.splitlines()}
    assert said["data set"] == f"list, {videos}, {videos / 'train.csv'}"
    held_out = int(said["clips"].split("; ")[1].split()[0])
    counts = re.fullmatch(r"3, with training clips: calm (\d), glad (\d), cross (\d)", said["classes"])
    assert counts is not None
    assert sum(map(int, counts.groups())) == 14 - held_out
    steps = (14 - held_out) // 4
    options = f"--root {videos} --train_list {videos / 'train.csv'} --classes calm,glad,cross"
    check = f"ifdd check --data list {options}"
    assert said["videos"] == f"read as they are drawn; to read all in advance: {check}"
    assert said["clips"].startswith(f"{14 - held_out} for training")
    assert said["network"].endswith("8 frames of 32 x 32 pixels")
    assert said["device"].startswith("cpu")
    assert said["steps"].startswith(f"2 epochs of {steps} steps of 4 clips: {2 * steps} steps, ")
    assert said["learning rate"].endswith("(--learning_rate 0.001 for a batch of 32 is 0.000125 for 4)")
    assert "the first epoch took" in trained.out, "an estimate of the time"
    assert "of 2\nheld-out part of the training set: WAR" in trained.out
    assert "ifdd fit: warning: the warm-up of 10 epochs is not over" in trained.err
    assert re.search(r"at a learning rate of at most \S+e-0\d hardly move random weights", trained.err)
    assert f"ifdd fit: warning: with {held_out} held-out clips" in trained.err
    assert "DataLoader" not in trained.err
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "best.ckpt",
        "last.ckpt",
        "model.safetensors",
    }
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert all(float(row["training_loss"]) > 0 and row["held_out_uar"] for row in rows(run))
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt", "best.ckpt"])
def test_test(ifdd: Run, videos: Path, run: Path, tmp_path: Path, name: str) -> None:
    """The classes come from the checkpoint."""
    result = ifdd(
        *("test", "--checkpoint", run / name, "--data", "list", "--root", videos),
        *("--test-list", videos / "test.csv", "--out", tmp_path, *QUIET),
    )
    assert result.code == 0, result.err
    first, second = result.out.splitlines()[:2]
    assert first == f"data set     list, test part, {videos}, {videos / 'test.csv'}"
    assert second.startswith(f"checkpoint   {run / name} (weights, epoch ")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["clips"], scores["classes"], scores["fold"]) == (6, list(CLASSES), None)


def test_scores_of_another_test_are_replaced_with_a_warning(
    ifdd: Run, videos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "model.safetensors", "w.safetensors")
    shutil.copytree(videos, "v")
    call = ("test", "--checkpoint", "w.safetensors", "--data", "list", "--root", "v", *QUIET, "--test_list")
    assert "\nwritten: " in ifdd(*call, "v/test.csv").out
    assert "\nreplaced: " in ifdd(*call, tmp_path / "v/test.csv").out, "the same test"
    for other in (("v/test.csv", "--stride", "2"), ("v/train.csv",)):
        result = ifdd(*call, *other)
        assert result.code == 0
        assert "\nreplaced: " in result.out
        assert (
            f"{tmp_path / 'scores.json'} held the scores of another test; give each test a folder"
            in result.err
        )
    assert json.loads((tmp_path / "scores.json").read_text())["clips"] == 14


def test_a_test_on_the_training_videos_is_noticed(videos: Path, run: Path, tmp_path: Path) -> None:
    def found(weights: Path, test_list: Path) -> str | None:
        return overlap_warning(weights, DataConfig(name="list", test_list=str(test_list), classes=[*CLASSES]))

    (tmp_path / "mixed.csv").write_text(f"{videos / 'clip 0.mp4'},0\n{videos / 'clip 19.mp4'},2\n")
    for name in ("model.safetensors", "last.ckpt"):
        assert found(run / name, videos / "test.csv") is None
        said = found(run / name, tmp_path / "mixed.csv")
        assert said is not None
        assert said.startswith(
            f"1 of 2 test videos is in the training set of this checkpoint ({run / 'config.yaml'})"
        )
    copy = Path(shutil.copy(run / "model.safetensors", tmp_path))
    assert found(copy, tmp_path / "mixed.csv") is None


def test_classes_of_another_order_are_refused(ifdd: Run, videos: Path, run: Path, tmp_path: Path) -> None:
    result = ifdd(
        *("test", "--checkpoint", run / "last.ckpt", "--data", "list", "--root", videos, "--out", tmp_path),
        *("--test_list", videos / "test.csv", "--classes", "glad,calm,cross", *QUIET),
    )
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "ifdd: error: --classes: those of the checkpoint are calm, glad, cross, in that order; "
        "omit --classes\n"
    )


def test_other_commands_take_the_training_checkpoint(
    ifdd: Run, videos: Path, run: Path, tmp_path: Path
) -> None:
    video = videos / "clip 0.mp4"
    assert ifdd("predict", video, "--checkpoint", run / "last.ckpt").code == 0
    assert ifdd("explain", video, "--checkpoint", run / "last.ckpt", "--out", tmp_path / "e.png").code == 0
    result = ifdd("convert", run / "last.ckpt", tmp_path / "c.safetensors", *NETWORK)
    assert result.code == 0, result.err
    assert "(weights, epoch 2 of 2)" in result.out
    converted = load_checkpoint(tmp_path / "c.safetensors")
    assert (converted.class_names, converted.extra["epoch"]) == (CLASSES, 1)
    wrong = ifdd("convert", run / "last.ckpt", tmp_path / "d.safetensors", "--classes", "a,b,c")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "are calm, glad, cross, in that order" in wrong.err
    wrong = ifdd("convert", run / "last.ckpt", tmp_path / "d.safetensors", "--model.embed_dim", "16")
    assert wrong.code == 2
    assert "--model.embed_dim 16: the network in" in wrong.err


def test_other_settings_are_refused_with_values_and_a_way_out(ifdd: Run, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    result = ifdd("fit", "--out", run, "--resume", "--mixup", "0.3", "--augment", "false", *QUIET)
    assert result.code == 2
    assert f"{run} was started with --augment true (now false), --mixup 0.8 (now 0.3)" in result.err
    assert f"--init {run / 'last.ckpt'} --out NEW" in result.err
    assert len(result.err.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_train_longer_with_the_data_elsewhere(ifdd: Run, videos: Path, run: Path, tmp_path: Path) -> None:
    moved, here = tmp_path / "moved", tmp_path / "here"
    shutil.copytree(videos, moved)
    shutil.copytree(run, here)
    resumed = ifdd("fit", "--out", here, "--resume", "--progress", "false")
    assert resumed.code == 0, "a finished training has nothing left to do"
    assert "none: 2 of 2 epochs are done" in resumed.out
    best = max(float(row["held_out_uar"]) for row in rows(here))
    longer = ifdd(
        *("fit", "--config", here / "config.yaml", "--out", here, "--resume", "--epochs", "3"),
        *("--root", moved, "--train-list", moved / "train.csv", "--progress", "false"),
    )
    assert longer.code == 0, longer.err
    assert "epochs 3 to 3 (2 done, planned for 2 before); 1 epoch of" in longer.out
    assert [row["epoch"] for row in rows(here)] == ["1", "2", "3"]
    last = float(rows(here)[-1]["held_out_uar"])
    chosen = load_checkpoint(here / "best.ckpt").extra
    assert (chosen["epoch"] == 2) == (last >= best), "the best epoch before counts, of equals the later"
    assert load_checkpoint(here / "model.safetensors").extra == chosen
    fewer = ifdd("fit", "--out", here, "--resume", "--epochs", "1", "--progress", "false")
    assert fewer.code == 2
    assert f"--epochs must be at least the 3 that are done in {here}, got 1; omit it" in fewer.err
    listed = (moved / "train.csv").read_text()
    first, second, *rest = listed.splitlines()
    (moved / "train.csv").write_text("\n".join([second, first, *rest]) + "\n")
    swapped = ifdd("fit", "--out", here, "--resume", "--epochs", "4", "--progress", "false")
    assert swapped.code != 0
    assert "clips were others, or the same in another order" in swapped.err
    (moved / "train.csv").write_text(listed + "clip 14.mp4,2\n")
    other = ifdd("fit", "--out", here, "--resume", "--epochs", "4", "--progress", "false")
    assert other.code != 0
    assert "the training was started with" in other.err
    assert len(other.err.splitlines()) == 1


@pytest.mark.parametrize(("begun", "number"), [(True, 2), (False, 2), (True, 15)])
def test_a_signal_in_a_training(
    ifdd: Run,
    videos: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: bool,
    number: int,
) -> None:
    """The library that trains would end the process without a word, with another exit code.

    SIGTERM often goes to all processes of a command: that those that read videos die is another error.
    """

    class Interrupting(TimeEstimate):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            try:
                signal.raise_signal(number)
            except SystemExit:
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.") from None

    monkeypatch.setattr("ifdd.training.callbacks.TimeEstimate", Interrupting)
    out, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    if begun:
        shutil.copytree(run, out)
        result = ifdd("fit", "--out", out, "--resume", "--epochs", "3", "--progress", "false")
        saved = f"epochs 1 to 2 are saved in {out / 'last.ckpt'}"
        advice = f"stopped; {saved}; go on with: ifdd fit --out {out} --resume"
    else:
        call = ("fit", "--out", out, "--data", "list", "--root", videos, "--classes", ",".join(CLASSES))
        result = ifdd(*call, "--train-list", videos / "train.csv", *NETWORK, *QUIET)
        advice = "stopped; the first epoch was not over, so there is nothing to go on from"
        assert not out.exists()
    assert result.code == 128 + number
    heard, word = {2: ("Ctrl-C", "interrupted"), 15: ("SIGTERM", "terminated")}[number]
    assert f"ifdd: {heard}: stopping as soon as the step under way is done\n" in result.err
    *_, line, last = result.err.splitlines()
    assert (last, line.endswith(advice)) == (f"ifdd: {word}", True), result.err
    assert signal.getsignal(signal.SIGINT) is before


def test_start_from_a_training_checkpoint(ifdd: Run, videos: Path, tmp_path: Path) -> None:
    """`--init RUN/last.ckpt`; the run can be resumed when that file is gone."""
    options = (
        *("--data", "list", "--root", videos, "--train_list", videos / "train.csv", "--validation", "0"),
        *("--classes", f"[{','.join(CLASSES)}]", "--epochs", "1", "--batch_size", "7", *NETWORK, *QUIET),
    )
    alone = ifdd("fit", "--out", tmp_path / "a", *options)
    assert alone.code == 0
    assert "\nlast epoch (none of the clips is held out to choose the best): 1 of 1\n" in alone.out
    init = ("--init", tmp_path / "a" / "last.ckpt")
    started = ifdd("fit", "--out", tmp_path / "b", *options, *init)
    assert started.code == 0, started.err
    assert f"start          {init[1]}" in started.out
    shutil.rmtree(tmp_path / "a")
    assert ifdd("fit", "--out", tmp_path / "b", "--resume", *options, "--epochs", "2").code == 0


def test_a_failed_start_leaves_no_folder(ifdd: Run, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("".join(f"clip 0.mp4,{n % 3}\nnone.mp4,{n % 3}\n" for n in range(3)))
    (tmp_path / "none.mp4").write_bytes(b"no video")
    shutil.copy(videos / "clip 0.mp4", tmp_path)
    options = (
        *("--data", "list", "--root", tmp_path, "--train_list", tmp_path / "bad.csv", "--validation", "0"),
        *("--classes", f"[{','.join(CLASSES)}]", "--epochs", "1", "--batch_size", "2", *NETWORK, *QUIET),
    )
    for out in (tmp_path / "deep" / "down", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
            (out / "mine.txt").touch()
        result = ifdd("fit", "--out", out, *options)
        assert result.code == 1
        assert "none.mp4" in result.err
        assert "--on_error skip trains without such videos, and `ifdd check` finds them all" in result.err
    assert not (tmp_path / "deep").exists()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["mine.txt"], "what was there stays"
    assert ifdd("fit", "--out", tmp_path / "c", *options, "--init", tmp_path / "no.ckpt").code == 2
    assert not (tmp_path / "c").exists()
