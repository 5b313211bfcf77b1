"""Faces found in frames, followed through a video and cut out.

`detector` finds faces in single frames, `tracker` gives them identities as frames come (a camera), `tracks`
follows them through a whole video that can be read twice, and `crop` is the one rule by which all of the
library cuts a face out. Results are plain values: a :class:`Box` is four numbers in pixels of the frame.
"""

from __future__ import annotations

from ifdd.faces.boxes import Box, Boxes
from ifdd.faces.crop import MARGIN, crop, face_region
from ifdd.faces.detector import DetectorError, FaceDetector, RetinaFace, load_detector
from ifdd.faces.tracker import TrackedFace, Tracker
from ifdd.faces.tracks import FaceTrack, FaceTracks, Segment, find_tracks

__all__ = [
    "MARGIN",
    "Box",
    "Boxes",
    "DetectorError",
    "FaceDetector",
    "FaceTrack",
    "FaceTracks",
    "RetinaFace",
    "Segment",
    "TrackedFace",
    "Tracker",
    "crop",
    "face_region",
    "find_tracks",
    "load_detector",
]
