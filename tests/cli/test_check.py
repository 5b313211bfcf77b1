"""`ifdd check`: faults, notes, counts and reports of a data set."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ifdd.data import inspection
from ifdd.data.inspection import Reading, read_all, read_through

from .conftest import write_video

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of each kind."""
    root = tmp_path_factory.mktemp("videos")
    for name, frames in (("good", 20), ("short", 5), ("other", 20), ("[red] $1", 20)):
        write_video(root / f"{name}.mp4", frames)
    (root / "text.mp4").write_text("no video")
    content = (root / "good.mp4").read_bytes()
    (root / "cut.mkv").write_bytes(b"")
    middle = content.index(b"mdat") + 400
    (root / "damaged.mp4").write_bytes(content[:middle] + bytes(600) + content[middle + 600 :])
    return root


def test_a_folder_with_a_damaged_image_is_damaged(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        Image.new("RGB", (8 + 8 * (number > 1), 8)).save(tmp_path / f"{number}.png")
    assert read_through(tmp_path) == Reading(4, (8, 8), notes=("frames of 2 sizes",))
    (tmp_path / "3.png").write_bytes(b"no image")
    found = read_through(tmp_path)
    assert (found.frames, found.size, found.fault) == (3, (8, 8), inspection.DAMAGED)
    assert "3.png" in found.reason


def check(ifdd: Run, root: Path, train: str, test: str | None = None, *options: object) -> Any:
    (root / "train.txt").write_text(train)
    lists = ["--train_list", root / "train.txt"]
    if test is not None:
        (root / "test.txt").write_text(test)
        lists += ["--test_list", root / "test.txt"]
    return ifdd("check", "--data", "list", "--classes", "x,y", *lists, "--workers", "0", *options)


def test_nothing_wrong(ifdd: Run, videos: Path) -> None:
    result = check(ifdd, videos, "good.mp4 0\nshort.mp4 1\n", "other.mp4 0\n")
    assert result.code == 0, result.out
    assert "3 videos, no fault" in result.out
    assert "note: short: fewer frames than the 16 of a window, stretched to it (--short repeat_" in result.out
    assert "fault:" not in result.out
    assert result.err == ""


def test_every_fault_is_told_and_reported(ifdd: Run, videos: Path, tmp_path: Path) -> None:
    train = "good.mp4 0\nnone.mp4 1\ntext.mp4 1\ndamaged.mp4 1\n"
    train += "short.mp4 0\ngood.mp4 1\n[red] $1.mp4 0\ncut.mkv 1\n"
    reports = ("--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json")
    result = check(ifdd, videos, train, "short.mp4 0\nnone.mp4 1\n", *reports)
    assert result.code == 1
    for text in (
        f"fault: train 2: {videos}/none.mp4: missing: no such file or folder",
        f"fault: train 3: {videos}/text.mp4: unreadable: ",
        f"fault: train 4: {videos}/damaged.mp4: damaged: ",
        f"fault: train 1: {videos}/good.mp4: repeated: also number 6 of the train list, with another label",
        f"fault: train 5: {videos}/short.mp4: shared: also number 1 of the test list",
        f"fault: train 8: {videos}/cut.mkv: unreadable: the file is empty",
        "--on_error skip would leave out 4 training videos",
        "`ifdd test` would stop: 1 test video cannot be read",
        "10 videos, 9 faults",
    ):
        assert text in result.out
    assert len(result.out.splitlines()) == len([line for line in result.out.splitlines() if line.strip()])
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["number"] for row in rows] == [*"12345678", "1", "2"]
    assert (rows[0]["frames"], rows[0]["width"], rows[0]["class"]) == ("20", "48", "x")
    assert rows[4]["notes"] == "short: 5 frames for a window of 16"
    *lines, last = map(json.loads, (tmp_path / "r.json").read_text().splitlines())
    assert len(lines) == 10
    assert lines[1]["faults"] == {
        "missing": "no such file or folder",
        "shared": "also number 2 of the test list",
    }
    counts = last["summary"]["counts"]["train"]
    assert counts["x"] == {"clips": 3, "repeated": 1, "shared": 1, "short": 1}
    assert counts["y"]["clips"] == 5
    assert last["summary"]["skipped_in_training"] == 4


def test_a_class_without_videos_and_a_list_that_cannot_be_read(ifdd: Run, videos: Path) -> None:
    result = check(ifdd, videos, "good.mp4 x\nnone.mp4 y\n", "other.mp4 z\n")
    assert result.code == 1
    assert "fault: class y has no training video that can be read" in result.out
    assert f"fault: {videos}/test.txt, line 1: label 'z' is none of x, y" in result.out
    assert "2 videos, 3 faults" in result.out
    result = check(ifdd, videos, "good.mp4 x\nshort.mp4 y\n", "other.mp4 x\n")
    assert "note: no test video of y: UAR would be the mean of 1 of 2 classes" in result.out


def test_all_bad_lines_are_told_at_once_and_the_others_are_read(ifdd: Run, videos: Path) -> None:
    result = check(ifdd, videos, "good.mp4 x\nshort.mp4 yy\nnone.mp4 y\nother.mp4 7\nother.mp4\n")
    assert result.code == 1
    for text in (
        "line 2: label 'yy' is none of x, y; did you mean y?",
        "line 4: label 7 is not in 1..2",
        "line 5: expected a path and a label",
        f"fault: train 2: {videos}/none.mp4: missing",
    ):
        assert text in result.out
    assert "2 videos, 5 faults" in result.out


def test_labels_are_those_of_the_list(ifdd: Run, videos: Path, tmp_path: Path) -> None:
    result = check(ifdd, videos, "good.mp4 1\nshort.mp4 2\n", None, "--csv", tmp_path / "r.csv")
    assert "labels count from 1: 1 is x" in result.out
    assert re.search(r"1 │ x ", result.out)
    assert [row["label"] for row in csv.DictReader((tmp_path / "r.csv").open())] == ["1", "2"]


def test_a_wrong_call(ifdd: Run) -> None:
    result = ifdd("check", "--data", "list", "--classes", "x,y")
    assert (result.code, result.out) == (2, "")
    assert "--data list needs --train_list, --test_list or both" in result.err


def test_class_folders_and_drawn_clips(ifdd: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "1.mp4", 20 if name == "a" else 21)
    result = ifdd("check", "--data", "folder", "--root", tmp_path, "--workers", "2")
    assert result.code == 0, result.out
    assert "2 videos, no fault" in result.out
    result = ifdd("check", "--data", "synthetic", "--train_size", "14", "--test_size", "7")
    assert result.code == 0
    assert "21 videos, no fault" in result.out


def test_a_fault_of_both_parts_is_told_once(ifdd: Run, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    result = ifdd("check", "--data", "folder", "--root", tmp_path, "--workers", "0")
    assert (result.code, result.out.count("fault: ")) == (1, 1)
    assert result.out.endswith("is the folder above meant?\n0 videos, 1 fault\n")


def test_more_processes_read_the_same(videos: Path) -> None:
    paths = sorted(videos.iterdir())
    assert list(read_all(paths, 2)) == [read_through(path) for path in paths]


def _crash(path: Path) -> Reading:
    if path.name == "bad":
        os._exit(1)
    return Reading(frames=int(path.name))


def test_a_decoder_that_crashes_costs_its_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "read_through", _crash)
    paths = [Path(name) for name in ("1", "2", "bad", "3", *map(str, range(4, 20)))]
    readings = list(read_all(paths, 2))
    assert [reading.reason for reading in readings if reading.fault] == ["the decoder crashed"]
    assert readings[2].fault
    assert [reading.frames for reading in readings if not reading.fault] == list(range(1, 20))
