"""Damage at random costs frames or one line, never a traceback, a hang or all memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

VIDEOS = [
    *(("a.mp4", "mpeg4", None), ("b.mp4", "libx264", {"movflags": "faststart"}), ("c.mkv", "libx264", None)),
    *(
        ("d.webm", "libvpx", None),
        ("e.avi", "mpeg4", None),
        ("f.mov", "libx264", None),
        ("g.gif", "gif", None),
    ),
    *(("h.ts", "libx264", None), ("i.flv", "libx264", None), ("j.mpg", "mpeg2video", None)),
    *(("k.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}), ("l.mkv", "ffv1", None)),
]
NIGHTLY = 2000


@pytest.mark.parametrize("count", [72, pytest.param(NIGHTLY, marks=pytest.mark.nightly)])
def test_damaged_at_random(tmp_path: Path, write_video, write_folder, count: int) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for number, (name, codec, options) in enumerate(VIDEOS):
        pixels = "rgb8" if codec == "gif" else "yuv420p"
        write_video(
            good / name, 12, codec=codec, options=options, pix_fmt=pixels, seed=number, noise=number % 2
        )
    for suffix in ("jpg", "png", "webp", "tif", "bmp"):
        write_folder(good / f"frames {suffix}", [f"{k}.{suffix}" for k in range(4)])
        write_folder(tmp_path / "alone", [f"m.{suffix}"])
        (tmp_path / "alone" / f"m.{suffix}").rename(good / f"m.{suffix}")
    script = Path(__file__).with_name("damaged_videos.py")
    command = [sys.executable, str(script), str(tmp_path), "0" if count < NIGHTLY else "1000", str(count)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60 * count,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0, f"{last}: exit {done.returncode}, {done.stderr[-2000:]}"
    found = re.fullmatch(r"done \{'frames': (\d+), 'part': (\d+), 'refused': (\d+)\} peak (\d+) MB", last)
    assert found is not None, last
    frames, part, refused, peak = map(int, found.groups())
    assert frames + part + refused == count
    assert min(frames, part, refused) > count // 20, "every outcome is tried"
    assert peak < 2000


def test_a_header_that_asks_for_all_memory(tmp_path: Path, write_video) -> None:
    """An AVI of 30000x30000 pixels by its header is refused before anything is allocated."""
    import struct

    from ifdd.data.video import VideoError, count_frames

    write_video(tmp_path / "a.avi", count=3, codec="ffv1", pix_fmt="bgr0")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    place = data.index(b"strf") + 8 + 4
    data[place : place + 8] = struct.pack("<2i", 30000, 30000)
    (tmp_path / "a.avi").write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.avi: no frame could be decoded"):
        count_frames(tmp_path / "a.avi")
