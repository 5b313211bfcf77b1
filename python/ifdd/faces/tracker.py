"""Identities for faces, frame by frame: which box now belongs to which face before."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ifdd.faces.boxes import Box, Boxes, overlaps
from ifdd.faces.shots import Look, colours_of, is_cut, look_of

PATIENCE = 0.6
"""Seconds that a face is still reported after it was last seen."""

MEMORY = 3.0
"""Seconds within which a face that comes back keeps its identity."""

REACH = 0.8
"""Sides of a face that it may be away from where it was expected, and once more for every second unseen."""

LARGEST_RATIO = 2.0
"""Of the sides of one face in two detections that follow each other."""

ALIKE = 0.3
"""Distance of the appearance, 0 to 1, up to which a face that comes back anywhere is the one that left."""

UNLIKE = 0.7
"""Distance from which a face at the expected place is another one."""

CUTOFF = 1.5
"""Smoothing of the boxes of a still face: movements slower than this, in Hz, pass."""

CUTOFF_BY_SPEED = 3.0
"""Hz by which the cutoff grows for every side of the face that it moves in a second."""

_IMPOSSIBLE = 1e6


class TrackedFace(NamedTuple):
    """A face of the last frame: ``track_id`` (from 1, never used twice), its smoothed ``box``, and whether it
    was ``observed`` in this frame or carried on from those before.
    """

    track_id: int
    box: Box
    observed: bool


@dataclass
class _Face:
    track_id: int
    measured: np.ndarray  # (4,) at its last detection
    smooth: np.ndarray
    look: np.ndarray | None
    seen: float  # when it was detected last
    now: float  # when `smooth` holds
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(4))
    sightings: int = 1

    @property
    def side(self) -> float:
        return _side(self.measured)

    def expected(self, seconds: float) -> np.ndarray:
        """Where it should be; a face that is out of sight does not keep its speed for long."""
        ahead = PATIENCE * (1 - math.exp(-(seconds - self.seen) / PATIENCE))
        return self.measured + self.velocity * ahead


class Tracker:
    """Follows faces as frames come; the same for a camera and for a file.

    Detections are assigned to faces so that the sum of their costs is least (the Hungarian method); the cost
    is the distance from where a face moving at constant speed would be, in sides of the face, and how much
    its colours and those around it (hair, collar) differ. A face that leaves and comes back within three
    seconds keeps its identity if it looks alike. A shot cut ends all tracks. Boxes are smoothed by the 1-euro
    filter (Casiez et al., CHI 2012): those of a still face strongly, those of a moving one with little delay.

    Args:
        confirmations: detections after which a face is reported; a false alarm seldom comes twice at one
            place.

    Attributes:
        matches: of the last update, the track of each box that was given, in order.
        new_shot: whether the last frame began another shot.
    """

    def __init__(self, confirmations: int = 2) -> None:
        self.matches: list[int] = []
        self.new_shot = False
        self._confirmations = confirmations
        self._faces: list[_Face] = []
        self._count = 0
        self._seconds = -1 / 25
        self._look: Look | None = None

    def update(
        self, boxes: Boxes | None, frame: np.ndarray | None = None, seconds: float | None = None
    ) -> list[TrackedFace]:
        """Takes the next frame; returns its faces in the order of their numbers.

        Args:
            boxes: what the detector found in it; None where it was not asked, then faces move on as before.
            frame: uint8 RGB (H, W, 3); without it place and size alone distinguish faces, and shot cuts
                are not seen.
            seconds: when it is shown; without it, 1/25 after the one before.

        Raises:
            ValueError: the time is not after that of the frame before.
        """
        seconds = self._seconds + 1 / 25 if seconds is None else seconds
        if seconds <= self._seconds and self._faces:
            raise ValueError(f"frames must be given in order, got {seconds} after {self._seconds} seconds")
        self._seconds = seconds
        if frame is not None:
            look = look_of(frame)
            self.new_shot = self._look is not None and is_cut(self._look, look)
            self._look = look
            if self.new_shot:
                self.cut()
        self._faces = [face for face in self._faces if seconds - face.seen <= MEMORY]
        if boxes is None:
            self.matches = []
        else:
            self._match(boxes, frame, seconds)
        return [self._report(face, seconds) for face in self._faces if self._shown(face, seconds)]

    def cut(self) -> None:
        """Ends all tracks: the next frame shows something else."""
        self._faces = []

    def _shown(self, face: _Face, seconds: float) -> bool:
        return face.sightings >= self._confirmations and seconds - face.seen <= PATIENCE

    def _report(self, face: _Face, seconds: float) -> TrackedFace:
        observed = face.seen == seconds
        if not observed:
            face.smooth = face.smooth + face.expected(seconds) - face.expected(face.now)
        face.now = seconds
        return TrackedFace(face.track_id, Box(*face.smooth.tolist()), observed)

    def _match(self, boxes: Boxes, frame: np.ndarray | None, seconds: float) -> None:
        from scipy.optimize import linear_sum_assignment

        found = boxes.boxes.astype(np.float64)
        looks = [None if frame is None else _appearance(frame, box) for box in found]
        costs = np.full((len(self._faces), len(found)), _IMPOSSIBLE)
        for row, face in enumerate(self._faces):
            for column, box in enumerate(found):
                costs[row, column] = _cost(face, box, looks[column], seconds)
        owners: dict[int, _Face] = {
            column: self._faces[row]
            for row, column in zip(*linear_sum_assignment(costs), strict=True)
            if costs[row, column] < _IMPOSSIBLE
        }
        alone = overlaps(found, found).sum(axis=1) < 1.1 if len(found) else []
        self.matches = []
        for column, box in enumerate(found):
            if column not in owners:
                self._count += 1
                owners[column] = _Face(self._count, box, box.copy(), looks[column], seconds, seconds)
                self._faces.append(owners[column])
            else:
                # While faces overlap, the colours of one are partly those of the other.
                _move(owners[column], box, looks[column] if alone[column] else None, seconds)
            self.matches.append(owners[column].track_id)


def _cost(face: _Face, box: np.ndarray, look: np.ndarray | None, seconds: float) -> float:
    if not 1 / LARGEST_RATIO <= _side(box) / face.side <= LARGEST_RATIO:
        return _IMPOSSIBLE
    unlike = None if face.look is None or look is None else _distance(face.look, look)
    elapsed = seconds - face.seen
    if unlike is not None and elapsed > PATIENCE:
        # It may come back anywhere; preferred less than any face that was in sight all the time.
        return 10 + unlike if unlike < ALIKE else _IMPOSSIBLE
    away = float(np.hypot(*(_centre(box) - _centre(face.expected(seconds))))) / face.side
    share = away / (REACH + elapsed)
    if share <= 1 and (unlike is None or unlike < UNLIKE):
        return share + 2 * (unlike or 0.0)
    return _IMPOSSIBLE


def _move(face: _Face, box: np.ndarray, look: np.ndarray | None, seconds: float) -> None:
    elapsed = seconds - face.seen
    back = elapsed > PATIENCE
    speed = np.zeros(4) if back else (box - face.measured) / elapsed
    face.velocity = speed if face.sightings == 1 or back else face.velocity + 0.5 * (speed - face.velocity)
    if back:
        face.smooth = box.copy()
    else:
        sides = float(np.hypot(*_centre(face.velocity))) / max(_side(box), 1.0)
        delay = 1 / (2 * math.pi * (CUTOFF + CUTOFF_BY_SPEED * sides))
        step = seconds - face.now
        face.smooth = face.smooth + (box - face.smooth) * step / (step + delay)
    if look is not None:
        face.look = look if face.look is None else 0.8 * face.look + 0.2 * look
    face.measured, face.seen, face.sightings = box, seconds, face.sightings + 1


def _side(box: np.ndarray) -> float:
    return max(float(math.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))), 1e-3)


def _centre(box: np.ndarray) -> np.ndarray:
    middle: np.ndarray = (box[:2] + box[2:]) / 2
    return middle


def _appearance(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Colours of the hair, the face and the collar: three histograms (192,), each of sum 1."""
    x0, y0, x1, y1 = box
    height = y1 - y0
    edges = (y0 - 0.3 * height, y0 + 0.15 * height, y1 - 0.1 * height, y1 + 0.5 * height)
    rows = np.clip(np.rint(edges), 0, frame.shape[0]).astype(int)
    left, right = np.clip(np.rint((x0, x1)), 0, frame.shape[1]).astype(int)
    return np.concatenate([colours_of(frame[top:bottom, left:right]) for top, bottom in pairwise(rows)])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the colours that differ, 0 to 1, over the parts of both that lie inside their frames."""
    a, b = a.reshape(3, -1), b.reshape(3, -1)
    inside = (a.sum(axis=1) > 0) & (b.sum(axis=1) > 0)
    if not inside.any():
        return 0.0
    return float(np.abs(a[inside] - b[inside]).sum(axis=1).mean() / 2)
