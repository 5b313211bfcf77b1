"""Finding the videos that names on the command line stand for."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifdd.checkpoint import load_checkpoint, save_checkpoint
from ifdd.inputs import InputError, find_videos, read_list

Run = Callable[..., Any]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = ("a.mp4", "b [1].MKV", "cover.jpg", "notes.txt", ".hidden.mp4")
    deep = ("deep/c.avi", "deep/deeper/d.webm", "deep/frames/1.png", "deep/frames/2.png", ".git/e.mp4")
    for name in (*files, *deep, "frames/001.jpg", "frames/002.jpg", "frames/preview.gif", "empty/readme"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(*names: str, recursive: bool = False) -> list[str]:
    found = list(find_videos(names, recursive))
    assert all(error is None for _, error in found)
    return [path for path, _ in found]


def test_folders_patterns_and_files(tree: Path) -> None:
    assert paths(".") == ["a.mp4", "b [1].MKV"]
    assert paths("frames") == ["frames"]
    assert paths("missing.mp4", "notes.txt") == ["missing.mp4", "notes.txt"]
    assert paths("*.mp4", "a.mp4", "a.mp4") == ["a.mp4"]
    assert paths("**/*.[aw]*") == ["deep/c.avi", "deep/deeper/d.webm"]
    assert paths("d*") == ["deep/c.avi"]
    assert paths("a.mp4", "./a.mp4", "deep/../a.mp4", str(tree / "a.mp4")) == ["a.mp4"]
    (tree / "same.mp4").symlink_to("a.mp4")
    assert paths("a.mp4", "same.mp4") == ["a.mp4", "same.mp4"]
    (tree / "same.mp4").unlink()
    # A name that exists is not a pattern, with any characters.
    assert paths("b [1].MKV") == ["b [1].MKV"]
    everything = ["a.mp4", "b [1].MKV", "deep/c.avi", "deep/deeper/d.webm", "deep/frames", "frames"]
    assert paths(".", recursive=True) == everything
    assert paths(str(tree), recursive=True) == [str(tree / name) for name in everything]


def test_what_holds_no_video_is_an_error_of_its_own(tree: Path) -> None:
    ((path, error), (other, none)) = find_videos(["no[x]*", "a.mp4"])
    assert (path, other, none) == ("no[x]*", "a.mp4", None)
    assert str(error) == "no[x]*: nothing matches this pattern"
    ((_, error),) = find_videos(["https://host/v.mp4?x=1"])
    assert str(error) == "https://host/v.mp4?x=1: an address, expected a file; download it first"
    for recursive in (False, True):
        ((_, error),) = find_videos(["empty"], recursive)
        assert str(error) == "empty: no video and no frames in this folder"
    (tree / "empty" / "class").mkdir()
    ((_, error),) = find_videos(["empty"])
    assert str(error).endswith(" in this folder; --recursive looks into the folders in it")


def test_a_list_keeps_every_name_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = b"\xef\xbb\xbfa b.mp4\r\n\n  c[1].mp4\n\xff\xe9.mp4\n"
    (tmp_path / "list").write_bytes(raw)
    expected = ["a b.mp4", "  c[1].mp4", os.fsdecode(b"\xff\xe9.mp4")]
    assert read_list(str(tmp_path / "list")) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert read_list("-") == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file"), (b"\n \n", "names no video"), (b"abc\0def", "no text file")],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_list(str(tmp_path / "list"))


def test_lists_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b.mp4", "c.mp4", " odd "):
        Path(name).touch()
    lines = '"a b.mp4"\r\n  c.mp4  \r\n odd \r\n"none"\r\n'
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        Path("list").write_bytes(lines.encode(encoding))
        assert read_list("list") == ["a b.mp4", "c.mp4", " odd ", '"none"'], encoding


def test_comments_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in lists of data sets; but a video may be called so."""
    monkeypatch.chdir(tmp_path)
    Path("#1.mp4").touch()
    Path("list").write_text("# mine\na.mp4\n #2.mp4\n#1.mp4\n./#2.mp4\n")
    assert read_list("list") == ["a.mp4", "#1.mp4", "./#2.mp4"]
    Path("list").write_text("# mine\n")
    with pytest.raises(InputError, match="names no video"):
        read_list("list")


def test_a_name_that_no_file_can_have_is_one_video(tmp_path: Path) -> None:
    ((name, error),) = find_videos(["n" * 5000])
    assert (name, str(error)) == ("n" * 5000, f"{'n' * 5000}: File name too long")


@pytest.mark.parametrize("arguments", [("explain", "--out", "e.png"), ("annotate", "--out", "a.mp4")])
def test_commands_of_one_video_say_what_else_a_folder_holds(
    ifdd: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set/happy/a.mp4", "set/happy/b.mp4", "set/sad/c.mp4", "set/notes/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    command, *rest = arguments
    for folder, says in (
        ("set", "holds 3 folders and no frames: name a video in it"),
        ("set/happy", "holds 2 videos and no frames: name a file in it"),
        ("set/notes", "no images in this folder"),
    ):
        result = ifdd(command, folder, "--checkpoint", checkpoint, *rest)
        assert (result.code, result.err) == (1, f"ifdd: error: {folder}: {says}\n")


@pytest.mark.parametrize(
    ("command", "out"),
    [("predict", "--json={}.json"), ("explain", "--out={}.png"), ("annotate", "--out={}.mp4")],
)
def test_a_network_trained_on_a_region_warns_of_whole_frames(
    ifdd: Run,
    checkpoint: Path,
    video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    out: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_checkpoint(checkpoint)
    save_checkpoint("w.safetensors", loaded.model, loaded.class_names, {"stride": 1, "crop": "auto"})
    call = (command, video, "--checkpoint", "w.safetensors")
    says = "ifdd: warning: the network was trained with --crop auto and reads whole frames now: "
    assert ifdd(*call, out.format("whole")).err.startswith(says)
    assert ifdd(*call, out.format("part"), "--crop", "0,0,40,40").err == ""


@pytest.mark.parametrize("command", ["predict", "explain", "annotate"])
def test_a_still_picture_is_read_with_a_warning(
    ifdd: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 48, 48, 3), np.uint8)
    (tmp_path / "frames").mkdir()
    for number in (0, 1):
        Image.fromarray(pixels[number]).save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "p.png").symlink_to("frames/0.png")
    out = {"predict": ("--quiet",), "explain": ("--out", "e.png"), "annotate": ("--out", "a.mp4")}[command]
    result = ifdd(command, "p.png", "--checkpoint", checkpoint, *out)
    says = "ifdd: warning: p.png: a still picture: one frame, and the network reads motion\n"
    assert (result.code, result.err) == (0, says)
    again = [argument.replace(".", "2.") for argument in out]
    assert ifdd(command, "frames", "--checkpoint", checkpoint, *again).err == ""
