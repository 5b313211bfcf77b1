"""Identities that stay: frame by frame, with boxes that the test states."""

from __future__ import annotations

import numpy as np
import pytest

from faces.conftest import SIDE, found, person, picture
from ifdd.faces import Box, FaceDetector, Tracker


def at(x: float, y: float = 30, side: float = 50) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def test_a_face_is_reported_when_it_was_found_twice() -> None:
    tracker = Tracker()
    assert tracker.update(found(at(10))) == []
    (face,) = tracker.update(found(at(10)))
    assert face.track_id == 1
    assert face.observed
    np.testing.assert_allclose(face.box, at(10))
    # A false alarm, once: never reported.
    assert [face.track_id for face in tracker.update(found(at(10), at(150)))] == [1]
    assert [face.track_id for face in tracker.update(found(at(10)))] == [1]


def test_a_missed_face_moves_on_and_ends() -> None:
    tracker = Tracker()
    for step in range(10):
        tracker.update(found(at(10 + 2 * step)))
    (carried,) = tracker.update(found())
    assert not carried.observed
    assert 27 < carried.box.x0 < 31
    (not_asked,) = tracker.update(None)
    assert not not_asked.observed
    assert not_asked.box.x0 > carried.box.x0
    for _ in range(15):  # 0.6 seconds
        last = tracker.update(found())
    assert last == []
    # Back within 3 seconds at about the same place: the same face.
    assert [face.track_id for face in tracker.update(found(at(30)))] == [1]
    for _ in range(80):
        tracker.update(found())
    tracker.update(found(at(30)))
    assert [face.track_id for face in tracker.update(found(at(30)))] == [2]


def test_boxes_of_a_still_face_are_smooth_and_those_of_a_moving_one_keep_up() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    noisy = [at(50 + rng.normal() * 2) for _ in range(100)]
    x = np.array([face.box.x0 for box in noisy for face in tracker.update(found(box))])
    raw = np.array([box[0] for box in noisy[1:]])
    assert np.diff(x).std() < 0.5 * np.diff(raw).std()
    tracker = Tracker()
    moving = [at(5.0 * step) for step in range(40)]  # 2.5 sides in a second
    lag = [box[0] - face.box.x0 for box in moving for face in tracker.update(found(box))][-1]
    assert abs(lag) < 10


def test_crossing_faces_keep_their_numbers() -> None:
    """Drawn people pass each other; the one behind is not found while it is hidden."""
    left, right = person(0)[0], person(3)[0]
    tracker = Tracker()
    seen: dict[int, list[float]] = {}
    for step in range(40):
        a, b = 4 * step, 180 - 4 * step
        boxes = [(a + 8, 38, a + 56, 90)]
        if abs(a - b) > 40:
            boxes.append((b + 8, 38, b + 56, 90))
        frame = picture([(right, (b, 32)), (left, (a, 32))])
        for face in tracker.update(found(*boxes), frame):
            seen.setdefault(face.track_id, []).append(face.box.x0)
    assert set(seen) == {1, 2}
    assert seen[1][-1] > 130 > 30 > seen[1][0]
    assert seen[2][-1] < 60 < 150 < seen[2][0]


def test_without_pictures_the_hidden_one_is_found_where_it_should_be() -> None:
    tracker = Tracker()
    for step in range(40):
        a, b = 4.0 * step, 180 - 4.0 * step
        boxes = [at(a)] + ([at(b)] if abs(a - b) > 20 else [])
        faces = tracker.update(found(*boxes))
    assert {face.track_id: face.box.x0 > 100 for face in faces} == {1: True, 2: False}


def test_who_comes_back_looks_like_who_left() -> None:
    """Two people leave; the second comes back on the other side."""
    tracker = Tracker()
    people = [person(0)[0], person(3)[0]]
    places = [(10, 30), (150, 30)]
    for _ in range(5):
        frame = picture(list(zip(people, places, strict=True)))
        tracker.update(found(*(at(x + 8, y + 6) for x, y in places)), frame)
    for _ in range(25):
        tracker.update(found(), picture([]))
    for _ in range(2):
        faces = tracker.update(found(at(18, 36)), picture([(people[1], (10, 30))]))
    assert [face.track_id for face in faces] == [2]


def test_a_cut_ends_all_tracks() -> None:
    tracker = Tracker()
    before = picture([(person(0)[0], (20, 30))])
    after = np.full_like(before, (220, 30, 30))
    after[30 : 30 + SIDE, 20 : 20 + SIDE] = person(0)[0]
    for frame in (before, before, before):
        tracker.update(found(at(28, 36)), frame)
        assert not tracker.new_shot
    tracker.update(found(at(28, 36)), after)
    assert tracker.new_shot
    assert [face.track_id for face in tracker.update(found(at(28, 36)), after)] == [2]


def test_a_box_of_another_size_is_another_face() -> None:
    tracker = Tracker()
    for _ in range(3):
        tracker.update(found(at(50, side=20)))
    tracker.update(found(at(30, side=80)))
    assert tracker.matches == [2]


def test_times_must_rise() -> None:
    tracker = Tracker()
    tracker.update(found(at(0)), seconds=1.0)
    with pytest.raises(ValueError, match=r"frames must be given in order, got 1\.0 after 1\.0 seconds"):
        tracker.update(found(at(0)), seconds=1.0)


def test_live_with_the_real_detector(detector: FaceDetector) -> None:
    """Two people, found in every third frame only."""
    tracker = Tracker()
    faces = []
    for step in range(12):
        frame = picture([(person(0)[0], (10 + 2 * step, 32)), (person(3)[0], (180 - 2 * step, 32))])
        boxes = detector.detect(frame[None])[0] if step % 3 == 0 else None
        faces = tracker.update(boxes, frame)
    assert len(faces) == 2
    for face, x in zip(faces, sorted((32, 158), key=lambda x: abs(x - faces[0].box.x0)), strict=True):
        assert isinstance(face.box, Box)
        assert x - 4 < face.box.x0 < face.box.x1 < x + SIDE + 4
