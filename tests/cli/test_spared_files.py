"""No run overwrites its inputs, and outputs land where their names say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, video: Path, checkpoint: Path) -> Path:
    """A video, a list of it, a checkpoint, a folder of frames, and other names of the video."""
    shutil.copy(video, tmp_path / "clip.mp4")
    shutil.copy(checkpoint, tmp_path / "weights.safetensors")
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'clip.mp4'}\n")
    (tmp_path / "link.csv").symlink_to("clip.mp4")
    os.link(tmp_path / "clip.mp4", tmp_path / "hard.csv")
    (tmp_path / "frames").mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "frames" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("option", "target", "what"),
    [
        ("--csv", "clip.mp4", "a video"),
        ("--json", "clip.mp4", "a video"),
        ("--jsonl", "frames/../clip.mp4", "a video"),
        ("--csv", "link.csv", "a video"),
        ("--jsonl", "hard.csv", "a video"),
        ("--json", "frames/1.png", "a video"),
        ("--csv", "list.txt", "the list"),
        ("--jsonl", "weights.safetensors", "the checkpoint"),
    ],
)
def test_what_is_read_is_not_written_over(
    ifdd: Run, place: Path, option: str, target: str, what: str
) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    result = ifdd(
        *("predict", place / "frames", "--list", place / "list.txt"),
        *("--checkpoint", place / "weights.safetensors", option, place / target, "--overwrite"),
    )
    assert result.code == 2
    assert result.err == f"ifdd: error: {option}: {place / target} is {what} that this run reads\n"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_no_other_command_writes_over_what_it_reads(ifdd: Run, place: Path) -> None:
    (place / "train.csv").write_text("clip.mp4,x\nclip.mp4,y\n")
    frame, weights = place / "frames" / "1.png", place / "weights.safetensors"
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    check = (
        "check",
        "--data",
        "list",
        "--classes",
        "x,y",
        "--train_list",
        place / "train.csv",
        "--workers",
        "0",
    )
    for call, says in (
        ((*check, "--csv", place / "train.csv"), f"--csv: {place / 'train.csv'} is a list"),
        ((*check, "--json", place / "hard.csv"), f"--json: {place / 'hard.csv'} is a video"),
        (
            ("explain", place / "frames", "--checkpoint", weights, "--out", frame),
            f"--out: {frame} is the video",
        ),
        (("convert", weights, weights), f"OUT: {weights} is the file"),
    ):
        result = ifdd(*call)
        assert (result.code, result.err) == (2, f"ifdd: error: {says} that this run reads\n")
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_the_journal_is_written_over_by_no_other_output(ifdd: Run, place: Path) -> None:
    result = ifdd(
        *("predict", place / "clip.mp4", "--checkpoint", place / "weights.safetensors"),
        *("--json", place / "o.json", "--csv", place / "o.json.journal"),
    )
    assert result.code == 2
    assert "--csv and the journal name the same file" in result.err
    assert not (place / "o.json.journal").exists()


def test_an_output_behind_a_link_goes_where_it_leads(ifdd: Run, place: Path) -> None:
    (place / "elsewhere").mkdir()
    for kind in ("csv", "json", "jsonl"):
        (place / f"out.{kind}").symlink_to(f"elsewhere/real.{kind}")
    result = ifdd(
        *("predict", place / "clip.mp4", "--checkpoint", place / "weights.safetensors"),
        *(f"--{kind}={place / f'out.{kind}'}" for kind in ("csv", "json", "jsonl")),
    )
    assert result.code == 0, result.err
    for kind in ("csv", "json", "jsonl"):
        assert (place / f"out.{kind}").is_symlink()
        assert (place / "elsewhere" / f"real.{kind}").stat().st_size > 100


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--csv", "", "--csv is empty"),
        ("--json", "n" * 300, "--json: " + "n" * 300 + ": File name too long"),
        ("--csv", "n" * 250, "the journal: " + "n" * 250 + ".journal: File name too long"),
        ("--jsonl", "circle", "--jsonl: circle: Too many levels of symbolic links"),
    ],
)
def test_names_that_no_output_can_have(
    ifdd: Run, place: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, says: str
) -> None:
    monkeypatch.chdir(place)
    Path("circle").symlink_to("circle")
    result = ifdd("predict", "clip.mp4", "--checkpoint", "weights.safetensors", option, value)
    assert result.code == 2
    assert result.err.startswith(f"ifdd: error: {says}")
    assert result.err.count("\n") == 1


def test_an_empty_name_is_no_video(ifdd: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "frames")  # what an empty path would stand for
    result = ifdd("predict", "", "--checkpoint", place / "weights.safetensors")
    assert (result.code, result.err) == (1, "ifdd: error: an empty name stands for no video\n")
