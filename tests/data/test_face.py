"""Finding the face of a video and cutting it out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ifdd.data.face import CropBox, find_face, parse_crop
from ifdd.data.video import VideoError, locate_face, read_video
from ifdd.faces import Boxes, detector


def overlap(a: CropBox, b: CropBox) -> float:
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    common = max(width, 0) * max(height, 0)
    return common / (a.width * a.height + b.width * b.height - common)


@pytest.mark.parametrize(
    "text", ["3,4,50,60", " 3, 4,50 ,60", (3, 4, 50, 60), [3, 4, 50, 60], CropBox(3, 4, 50, 60)]
)
def test_parse_crop(text) -> None:
    assert parse_crop(text) == CropBox(3, 4, 50, 60)


def test_parse_crop_words() -> None:
    assert parse_crop(None) is None
    assert parse_crop("auto") == "auto"
    assert parse_crop(" Auto") == "auto"
    assert str(CropBox(3, 4, 50, 60)) == "3,4,50,60"


@pytest.mark.parametrize("text", ["face", "1,2,3", "1,2,3,4,5", "1,2,x,4", "", 7, (1, 2)])
def test_parse_crop_refuses_other_words(text) -> None:
    with pytest.raises(ValueError, match=r"crop must be 'auto' or four integers x,y,w,h, got"):
        parse_crop(text)


@pytest.mark.parametrize("text", ["-1,0,5,5", "0,0,0,5", "0,0,5,-5"])
def test_parse_crop_refuses_empty_boxes(text: str) -> None:
    with pytest.raises(ValueError, match=r"crop needs x, y >= 0 and w, h >= 1"):
        parse_crop(text)


def test_finds_the_face_of_the_real_clip(real_clip: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `face`")
    # Outlined by hand: in the first frame the face is at 58..118 x 35..100, later it moves to the left.
    by_hand = CropBox(40, 20, 80, 85)
    box = locate_face(real_clip)
    assert box.width == box.height
    assert overlap(box, by_hand) > 0.6
    video = read_video(real_clip, crop="auto", size=64)
    assert video.frames.shape == (120, 64, 64, 3)
    explicit = read_video(real_clip, crop=box, size=64)
    assert np.array_equal(video.frames, explicit.frames)


def test_finds_the_face_at_other_sizes_and_places(real_clip: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `face`")
    frames = read_video(real_clip, indices=range(0, 120, 20)).frames
    box = find_face(frames)
    larger = read_video(real_clip, indices=range(0, 120, 20), size=(144 * 5, 176 * 5)).frames
    assert overlap(CropBox(*(value // 5 for value in find_face(larger))), box) > 0.8
    # Moved into a corner of a larger picture: the box follows.
    canvas = np.full((6, 300, 340, 3), 128, np.uint8)
    canvas[:, 156:, 164:] = frames
    moved = find_face(canvas)
    assert overlap(moved._replace(x=moved.x - 164, y=moved.y - 156), box) > 0.7


def test_no_face(tmp_path: Path, write_video) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `face`")
    write_video(tmp_path / "a.mp4", count=40)
    with pytest.raises(VideoError) as info:
        read_video(tmp_path / "a.mp4", crop="auto")
    message = str(info.value)
    assert str(tmp_path / "a.mp4") in message
    assert "no face found in" in message
    assert "crop='x,y,w,h'" in message
    with pytest.raises(VideoError, match="no face found in 1 frames"):
        find_face(np.zeros((1, 10, 2000, 3), np.uint8))


class FakeDetector:
    """Reports given boxes (x, y, w, h) frame by frame."""

    def __init__(self, *boxes: list[tuple[int, int, int, int]]) -> None:
        self.boxes = iter(boxes)

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        found = [(x, y, x + w, y + h) for x, y, w, h in next(self.boxes)]
        return [Boxes(np.array(found, np.float32).reshape(-1, 4), np.ones(len(found), np.float32))]


def boxes_found(monkeypatch: pytest.MonkeyPatch, *boxes, size=(400, 512), margin=0.0) -> CropBox:
    """find_face with these detections."""
    monkeypatch.setattr(detector, "load_detector", lambda: FakeDetector(*boxes))
    return find_face([np.zeros((*size, 3), np.uint8)] * len(boxes), margin=margin)


def test_false_alarms_are_outvoted_and_the_median_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    box = boxes_found(
        monkeypatch,
        [(100, 100, 80, 80), (300, 20, 200, 200)],
        [(104, 98, 84, 84)],
        [(10, 300, 90, 90)],
        [(108, 102, 82, 82)],
    )
    assert box == CropBox(104, 99, 84, 84)


def test_the_larger_of_two_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [(50, 50, 60, 60), (300, 100, 120, 120)]
    assert boxes_found(monkeypatch, two, two) == CropBox(300, 100, 120, 120)


def test_a_quarter_of_the_frames_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    here, empty = [(100, 100, 80, 80)], []
    assert boxes_found(monkeypatch, here, empty, empty, empty) == CropBox(100, 100, 80, 80)
    with pytest.raises(VideoError, match="no face found in 5 frames"):
        boxes_found(monkeypatch, here, empty, empty, empty, empty)
    # The same place twice in one frame is one vote.
    with pytest.raises(VideoError, match="no face found in 5 frames"):
        boxes_found(monkeypatch, here * 2, empty, empty, empty, empty)


def test_margin_square_and_border(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boxes_found(monkeypatch, [(100, 100, 80, 60)], margin=0.25) == CropBox(80, 70, 120, 120)
    assert boxes_found(monkeypatch, [(0, 5, 80, 80)], margin=0.25) == CropBox(0, 0, 120, 120)
    assert boxes_found(monkeypatch, [(450, 340, 60, 60)], margin=0.5) == CropBox(392, 280, 120, 120)
    assert boxes_found(monkeypatch, [(100, 0, 390, 390)], margin=0.5) == CropBox(95, 0, 400, 400)


def test_without_the_extra(real_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector.load_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(VideoError) as info:
        read_video(real_clip, crop="auto", max_frames=2)
    message = str(info.value)
    assert "extra `face`" in message
    assert "pip install" in message
    assert "crop='x,y,w,h'" in message
    assert str(real_clip) in message
    assert "\n" not in message


def test_frames_of_different_sizes_are_refused() -> None:
    with pytest.raises(
        VideoError, match=r"clip 7: the face crop needs frames of one size, got \[\(8, 8\), \(9, 9\)\]"
    ):
        find_face([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)], name="clip 7")
    with pytest.raises(VideoError, match="got no frames"):
        find_face([])
