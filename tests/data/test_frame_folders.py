"""Folders of frames by any naming, and folders of videos."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from ifdd.data.errors import printable
from ifdd.data.video import VideoError, count_frames, frame_files, list_videos, read_video


@pytest.mark.parametrize(
    "pattern",
    [
        *("frame{:04d}.jpg", "img{:05d}.jpg", "out{:03d}.png", "frame-{:04d}.jpg", "clip.{:05d}.jpg"),
        *("frame ({:d}).png", "frame_det_00_{:06d}.bmp", "{:05d}.webp", "img_{:05d}_face.jpg", "{}.JPE"),
        *("clip12_frame{:04d}.TIFF", "{}.ppm", "-{}.png", "[a] {} $x.png", "x\n{}.png", "표정{}.png"),
        *("a:b{:03d}.png", "2024-05-01 12.30.00 {}.jpeg", "{}\xa0.bmp", "１２_{}.png"),
    ],
)
def test_common_names(tmp_path: Path, write_folder, pattern: str) -> None:
    names = [pattern.format(number) for number in (1, 2, 3, 9, 10, 11, 100)]
    write_folder(tmp_path / "a", sorted(names))
    assert [file.name for file in frame_files(tmp_path / "a")] == names
    assert len(read_video(tmp_path / "a").frames) == count_frames(tmp_path / "a") == 7


def test_numbers_of_another_script(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, ["٢.png", "١٠.png"])
    assert [file.name for file in frame_files(tmp_path)] == ["٢.png", "١٠.png"]


def test_mixed_suffixes(tmp_path: Path, write_folder) -> None:
    names = ["f1.jpg", "f2.PNG", "f3.bmp", "f4.webp", "f10.Tif"]
    frames = write_folder(tmp_path / "a", names)
    (tmp_path / "a" / "notes 5.txt").write_text("no frame")
    (tmp_path / "a" / "6.png").mkdir()
    assert [file.name for file in frame_files(tmp_path / "a")] == names
    assert np.abs(read_video(tmp_path / "a").frames.astype(int) - frames).mean() < 6


def test_an_image_alone_needs_no_number(tmp_path: Path, write_folder) -> None:
    frames = write_folder(tmp_path / "a", ["portrait.png"])
    assert np.array_equal(read_video(tmp_path / "a").frames, frames)
    assert np.array_equal(read_video(tmp_path / "a" / "portrait.png").frames, frames)
    write_folder(tmp_path / "b", ["frame%03d.png"])
    assert len(read_video(tmp_path / "b" / "frame%03d.png").frames) == 1, "a name is no pattern"


def test_names_that_do_not_order(tmp_path: Path, write_folder) -> None:
    def message(name: str, *names: str) -> str:
        write_folder(tmp_path / name, names)
        with pytest.raises(VideoError) as info:
            frame_files(tmp_path / name)
        assert "\n" not in str(info.value)
        return str(info.value)

    assert "image 'cover.png' has no number in its name" in message("a", "1.png", "cover.png")
    assert "image 'Ⅷ.png' has no number" in message("b", "Ⅷ.png", "Ⅸ.png")
    assert "frame 7 is there twice ('a7.png' and 'b07.png'); the last number" in message(
        "c", "b07.png", "a7.png"
    )
    assert r"'x\ny.png' has no number" in message("d", "x\ny.png", "1.png")


def test_folders_without_frames_say_what_they_hold(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(VideoError) as info:
            read_video(tmp_path)
        return str(info.value)

    assert message() == f"{tmp_path}: no images in this folder"
    (tmp_path / "x").mkdir()
    assert message().endswith("holds 1 folder and no frames: name a video in it")
    (tmp_path / "a.MP4").write_bytes(b"x")
    assert message().startswith(f"{tmp_path}: holds 1 video and no frames: name a file in it")
    (tmp_path / "b.webm").write_bytes(b"x")
    assert "holds 2 videos and no frames" in message()


def test_videos_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.AVI", "notes.txt", ".c.mp4", "x/d.mkv", "x/y/e.gif", ".z/f.mp4", "a.mp4.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "g.mov").mkdir()
    (tmp_path / "x" / "back").symlink_to(tmp_path)
    assert list_videos(tmp_path) == [tmp_path / "a.AVI", tmp_path / "b.mp4"]
    assert list_videos(str(tmp_path), recursive=True) == [
        *(tmp_path / "a.AVI", tmp_path / "b.mp4", tmp_path / "x" / "d.mkv", tmp_path / "x" / "y" / "e.gif")
    ]
    with pytest.raises(VideoError, match=r"none: cannot list the folder \(No such"):
        list_videos(tmp_path / "none")


@pytest.mark.parametrize(
    "name", [b"[1] $x 'y'.mp4", b"-v.mp4", b"a\nb.mp4", b"gr\xfcn.mp4", b"file:x.mp4", "表情.mp4".encode()]
)
def test_any_name_of_a_video(tmp_path: Path, write_video, monkeypatch, name: bytes) -> None:
    write_video(tmp_path / "plain.mp4", count=3)
    monkeypatch.chdir(tmp_path)
    try:
        Path("plain.mp4").rename(os.fsdecode(name))
    except OSError:
        pytest.skip("the file system takes no such name")
    path = os.fsdecode(name)
    assert count_frames(path) == 3
    Path(path).write_bytes(b"text")
    with pytest.raises(VideoError) as info:
        count_frames(path)
    text = str(info.value)
    assert text.encode()
    assert text.isprintable()
    assert text.startswith(printable(path))


def test_printable_names() -> None:
    for name in ("a b.mp4", "[x] $y", "表情/é.mp4", "back\\slash"):
        assert printable(Path(name)) == name
    assert printable("a\nb\t\x1b\udcfc") == r"a\nb\t\x1b\xfc"


def test_transparent_images_show_the_colour_they_state(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "1.png")
    Image.new("LA", (8, 8), (40, 0)).save(tmp_path / "2.png")
    frames = read_video(tmp_path).frames
    assert (frames[0] == (10, 20, 30)).all()
    assert (frames[1] == 40).all()


def test_images_that_ask_for_all_memory_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for side, complaint in ((9000, "9000x9000 pixels are more than"), (30000, "900000000 pixels")):
        Image.new("1", (1, 1)).save(tmp_path / "1.png")
        data = bytearray((tmp_path / "1.png").read_bytes())
        data[16:24] = struct.pack(">2I", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "1.png").write_bytes(data)
        with pytest.raises(VideoError, match=rf"1\.png: .*{complaint}"):
            read_video(tmp_path)
