"""Which frames the network reads, checked against the frames held all at once."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ifdd.data.sampling import Sampling, SamplingPolicy
from ifdd.data.video import VideoError, read_video
from ifdd.streaming import Footage, Reading, Tail, Window, Windows, read_windows

from .conftest import write_video


def drain(generator: Generator[Window, None, Footage]) -> tuple[list[Window], Footage]:
    windows = []
    while True:
        try:
            windows.append(next(generator))
        except StopIteration as stop:
            return windows, stop.value


def window_starts(length: int, span: int, tail: Tail) -> list[int]:
    """First frames of the windows of a video of `length` >= `span` frames."""
    starts = list(range(0, length - span + 1, span))
    if tail == "overlap" and length % span:
        starts.append(length - span)
    return starts


def reading(stride: int = 1, short: Any = "repeat_last", **options: Any) -> Reading:
    return Reading(4, 32, SamplingPolicy(stride, short), **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 1 to 13 of as many frames, each of one colour."""
    root = tmp_path_factory.mktemp("frames")
    for length in range(1, 14):
        (root / str(length)).mkdir()
        for number in range(length):
            Image.new("RGB", (8, 8), (20 * number,) * 3).save(root / str(length) / f"{number}.png")
    return root


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("tail", ["overlap", "drop"])
@pytest.mark.parametrize("short", ["repeat_last", "repeat_each"])
def test_windows_are_those_of_the_frames_held_at_once(
    folders: Path, stride: int, tail: Tail, short: Any
) -> None:
    span = 4 * stride
    for length in (1, 3, 4, 6, 8, 11, 13):
        path = folders / str(length)
        frames = read_video(path, size=32).frames
        if length < span:
            rows = Sampling("consecutive", 4, stride, short).indices(length)
        else:
            starts = np.array(window_starts(length, span, tail))
            rows = starts[:, None] + stride * np.arange(4)
        windows, footage = drain(read_windows(path, reading(stride, short, tail=tail)))
        assert np.array_equal(np.stack([w.frames for w in windows]), frames[rows])
        assert [w.number for w in windows] == list(range(len(rows)))
        for window, row in zip(windows, rows, strict=True):
            assert (window.start_seconds, window.stop_seconds) == pytest.approx(
                (row[0] / 25, (row[-1] + 1) / 25)
            )
        used = length if tail == "overlap" or length < span else length // span * span
        assert (footage.windows, footage.frames_read, footage.frames_used) == (len(rows), length, used)
        assert footage.frames_announced == length
        assert footage.stretched is (length < span)
        assert footage.seconds == pytest.approx(length / 25)
        # Whatever is skipped, the rest is the same.
        for skip in range(len(rows) + 1):
            rest, again = drain(read_windows(path, reading(stride, short, tail=tail), skip))
            assert again == footage
            assert [w.number for w in rest] == list(range(skip, len(rows)))
            for window in rest:
                assert np.array_equal(window.frames, windows[window.number].frames)
        assert drain(read_windows(path, reading(stride, short, tail=tail), len(rows) + 1)) == ([], footage)


@pytest.mark.parametrize("stride", [1, 3])
def test_the_centre_window_is_that_of_the_whole_length(folders: Path, stride: int) -> None:
    for length in (1, 3, 4, 6, 12, 13):
        path = folders / str(length)
        rows = Sampling("centre", 4, stride).indices(length)
        (window,), footage = drain(read_windows(path, reading(stride, windows="centre")))
        assert np.array_equal(window.frames, read_video(path, size=32).frames[rows[0]])
        assert window.number == 0
        assert (footage.windows, footage.frames_read) == (1, length)
        assert footage.frames_used == min(length, 4 * stride)
        assert drain(read_windows(path, reading(stride, windows="centre"), 1)) == ([], footage)


def test_skipped_windows_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ifdd.data import video

    path = write_video(tmp_path / "v.mp4", frames=40)
    converted: list[int] = []
    image = video.Frame.image

    def counting(frame: video.Frame) -> np.ndarray:
        converted.append(frame.number)
        return image(frame)

    monkeypatch.setattr(video.Frame, "image", counting)
    drain(read_windows(path, reading(), 9))
    # The window before the first one that is wanted may be needed for an overlap.
    assert converted == list(range(32, 40))
    converted.clear()
    drain(read_windows(path, reading(windows="centre")))
    assert converted == list(range(18, 22))


@pytest.mark.parametrize("windows", ["all", "centre"])
def test_damage_ends_nothing_unless_it_is_to_be_refused(
    folders: Path, tmp_path: Path, windows: Windows
) -> None:
    for number in range(11):
        content = (folders / "13" / f"{number}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(content[:40] if number == 10 else content)
    found, footage = drain(read_windows(tmp_path, reading(windows=windows)))
    assert footage.damage is not None
    assert "10.png" in footage.damage
    assert (footage.frames_read, footage.frames_announced) == (10, 11)
    assert len(found) == (3 if windows == "all" else 1)
    with pytest.raises(VideoError, match=r"10\.png"):
        drain(read_windows(tmp_path, reading(windows=windows, strict=True)))


@pytest.mark.parametrize(("field", "value"), [("windows", "first"), ("tail", "keep")])
def test_unknown_names_are_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of"):
        reading(**{field: value})
