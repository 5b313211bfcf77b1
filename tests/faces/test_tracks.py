"""Faces followed through whole videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from faces.conftest import SIDE, found, person, picture
from ifdd.data.face import CropBox
from ifdd.faces import (
    Box,
    Boxes,
    FaceDetector,
    FaceTrack,
    FaceTracks,
    Segment,
    crop,
    face_region,
    find_tracks,
)
from ifdd.faces.plan import plan_windows
from ifdd.faces.tracks import parse_face

FramesIn = Callable[[str, Sequence[np.ndarray]], Path]


class Stated:
    """Finds what a function of the number of the frame says; frames carry their number in the first pixel."""

    def __init__(self, boxes: Callable[[int], Sequence[Sequence[float]]]) -> None:
        self.boxes = boxes
        self.asked: list[int] = []

    def detect(self, frames: np.ndarray) -> list[Boxes]:
        self.asked += [int(frame[0, 0, 0]) for frame in frames]
        return [found(*self.boxes(int(frame[0, 0, 0]))) for frame in frames]


def numbered(count: int, shade: Callable[[int], int] = lambda number: 100) -> list[np.ndarray]:
    frames = [np.full((60, 80, 3), shade(number), np.uint8) for number in range(count)]
    for number, frame in enumerate(frames):
        frame[0, 0] = number
    return frames


def test_two_people_who_cross(detector: FaceDetector, frames_in: FramesIn) -> None:
    """The one behind is hidden for a while; each has one track, and the boxes are theirs."""
    left, right = person(0, 4), person(3, 4)
    places = [(4 * step, 190 - 4 * step) for step in range(48)]
    frames = [
        picture([(right[step % 4], (b, 32)), (left[step % 4], (a, 32))]) for step, (a, b) in enumerate(places)
    ]
    tracks = find_tracks(frames_in("crossing", frames), detector)
    assert tracks.frames == 48
    assert tracks.looked_at <= 12
    assert tracks.cuts == ()
    assert [track.track_id for track in tracks.tracks] == [1, 2]
    for step in (0, 10, 40, 47):
        middles = sorted(((box.x0 + box.x1) / 2 - SIDE / 2, number) for number, box in tracks.faces_at(step))
        for (middle, _), place in zip(middles, sorted(places[step]), strict=True):
            assert abs(middle - place) < 8
    first, last = (
        [number for _, number in sorted((box.x0, number) for number, box in tracks.faces_at(step))]
        for step in (0, 47)
    )
    assert first == last[::-1]


def test_the_real_clip(detector: FaceDetector, real_clip: Path) -> None:
    tracks = find_tracks(real_clip, detector)
    (track,) = tracks.tracks
    assert [(segment.start, segment.stop) for segment in track.segments] == [(0, 120)]
    boxes = np.array([track.box_at(number) for number in range(120)])
    assert np.abs(np.diff(boxes, axis=0)).max() < 3  # no jumps


def test_one_who_leaves_and_returns(frames_in: FramesIn) -> None:
    here = (10.0, 10.0, 40.0, 40.0)
    detector = Stated(lambda number: [here] if number < 22 or number > 48 else [])
    tracks = find_tracks(frames_in("away", numbered(70)), detector)
    (track,) = tracks.tracks
    assert [(segment.start, segment.stop) for segment in track.segments] == [(0, 21), (50, 70)]
    assert track.box_at(30) is None
    assert tracks.faces_at(55) == [(1, Box(*here))]
    assert detector.asked == [*range(0, 70, 5), 69]


def test_a_face_missed_for_a_moment_is_one_stretch(frames_in: FramesIn) -> None:
    """Between the looks before and after, its box moves evenly."""
    detector = Stated(lambda n: [] if n in (10, 15) else [(n, 10.0, n + 30.0, 40.0)])
    (track,) = find_tracks(frames_in("missed", numbered(41)), detector).tracks
    assert [(segment.start, segment.stop) for segment in track.segments] == [(0, 41)]
    middle = track.box_at(13)
    assert middle is not None
    assert abs(middle.x0 - 13) < 1


def test_a_cut_ends_tracks_at_its_frame(frames_in: FramesIn) -> None:
    """Between two looks; faces are there up to the last frame before and from the first frame after."""
    here = (10.0, 10.0, 40.0, 40.0)
    frames = numbered(40, lambda number: 30 if number < 18 else 220)
    tracks = find_tracks(frames_in("cut", frames), Stated(lambda number: [here]))
    assert tracks.cuts == (18,)
    stretches = [(s.start, s.stop) for track in tracks.tracks for s in track.segments]
    assert stretches == [(0, 18), (18, 40)]


def test_a_false_alarm_makes_no_track(frames_in: FramesIn) -> None:
    detector = Stated(lambda number: [(10.0, 10.0, 40.0, 40.0)] if number == 10 else [])
    assert find_tracks(frames_in("alarm", numbered(30)), detector).tracks == ()
    # A single picture has nothing to confirm it.
    alone = Stated(lambda number: [(10.0, 10.0, 40.0, 40.0)])
    assert len(find_tracks(frames_in("picture", numbered(1)), alone).tracks) == 1


def track_of(number: int, *stretches: tuple[int, int], side: float = 10) -> FaceTrack:
    box = np.array([[0, 0, side, side]], np.float32)
    segments = [Segment(start, stop, np.array([start]), box) for start, stop in stretches]
    return FaceTrack(number, tuple(segments))


def test_which_faces_count() -> None:
    tracks = FaceTracks(
        (track_of(1, (0, 50)), track_of(2, (0, 10), (20, 30), side=40), track_of(3, (0, 90), side=5)), 90, 19
    )
    ids = {face: [track.track_id for track in tracks.select(face)] for face in ("largest", "all", 2, 9)}
    assert ids == {"largest": [2], "all": [2, 1, 3], 2: [2, 1], 9: [2, 1, 3]}
    assert [parse_face(word) for word in ("Largest", " all", "3", 3, "off", None)] == [
        *("largest", "all", 3, 3, None, None)
    ]
    for word in ("", "0", "-1", "face", 1.5):
        with pytest.raises(ValueError, match="face must be largest, all, off or a number from 1, got"):
            parse_face(word)  # type: ignore[arg-type]


def windows(tracks: Sequence[FaceTrack], overlap: bool = True, centre: bool = False) -> list[tuple[int, ...]]:
    plan = plan_windows(
        tracks, np.arange(4) * 2, 8, lambda n: np.minimum(np.arange(4), n - 1), overlap=overlap, centre=centre
    )
    return [(window.track.track_id, window.start, window.length) for window in plan]


def test_windows_of_stretches() -> None:
    """Side by side, a last one that overlaps, short ones stretched from half a window on."""
    assert windows([track_of(1, (3, 22))]) == [(1, 3, 8), (1, 11, 8), (1, 14, 8)]
    assert windows([track_of(1, (3, 22))], overlap=False) == [(1, 3, 8), (1, 11, 8)]
    assert windows([track_of(1, (3, 22))], centre=True) == [(1, 8, 8)]
    assert windows([track_of(1, (0, 8), (20, 24), (30, 33))]) == [(1, 0, 8), (1, 20, 4)]
    assert windows([track_of(1, (0, 3), (20, 22))]) == [(1, 0, 3)]
    assert windows([track_of(1, (0, 3), (20, 22))], overlap=False) == [(1, 0, 3)]
    # In the order in which they are complete.
    assert windows([track_of(2, (1, 9)), track_of(1, (0, 16))]) == [(1, 0, 8), (2, 1, 8), (1, 8, 8)]


def test_the_crop_rule() -> None:
    assert face_region((100, 100, 180, 160), 512, 400, margin=0.25) == CropBox(80, 70, 120, 120)
    assert face_region((0, 5, 80, 85), 512, 400, margin=0.25) == CropBox(0, 0, 120, 120)
    assert face_region((450, 340, 510, 400), 512, 400, margin=0.5) == CropBox(392, 280, 120, 120)
    assert face_region((100, 0, 490, 390), 512, 400, margin=0.5) == CropBox(95, 0, 400, 400)
    assert face_region((-50, -50, -40, -40), 512, 400) == CropBox(0, 0, 13, 13)
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    cut = crop(frame, (20.2, 10.1, 39.8, 29.9))
    assert np.array_equal(cut, frame[7:33, 17:43])
    assert np.shares_memory(cut, frame)
    assert crop(frame, (20, 10, 40, 30), 16).shape == (16, 16, 3)
