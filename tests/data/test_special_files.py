"""Pipes, devices and sockets where a file is expected: said at once, never opened, which might never end."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ifdd.data.video import VideoError, open_video


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4: a pipe, expected a file or a folder of frames$"):
        open_video(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_is_no_video(device: str) -> None:
    with pytest.raises(VideoError, match=f"^{device}: a device, expected"):
        open_video(device)


def test_a_socket_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.mp4")
        with pytest.raises(VideoError, match=r"^s\.mp4: a socket, expected"):
            open_video("s.mp4")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_among_frames_is_a_damaged_frame(tmp_path: Path, kind: str) -> None:
    for number in (1, 3):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    if kind == "pipe":
        os.mkfifo(tmp_path / "2.png")
    else:
        (tmp_path / "2.png").symlink_to("/dev/zero")
    damage: list[str | None] = []

    def read() -> None:
        with open_video(tmp_path) as video:
            assert [frame.image()[0, 0, 0] for frame in video] == [1, 3]
            damage.append(video.damage)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert damage, "the reader waits for the pipe"
    assert damage[0] is not None
    assert f"2.png: a {kind}, expected a file" in damage[0]
