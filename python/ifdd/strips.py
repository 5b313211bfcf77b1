"""All windows of a video, or of one face in it, as a figure shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ifdd.streaming import Window

MOST_PICTURES = 24
"""Frames that are kept of a face, evenly spread, however many windows it has."""


@dataclass(frozen=True)
class FaceStrip:
    """N windows, K classes.

    Attributes:
        face: the number of the track, None for the whole frame or a given box.
        starts: seconds (N,).
        stops: seconds (N,).
        probabilities: (N, K).
        mean: (K,), softmax of the mean of the logits.
        pictures: a few of the frames that the network saw, uint8 (S, S, 3), with their seconds.
    """

    face: int | None
    starts: np.ndarray
    stops: np.ndarray
    probabilities: np.ndarray
    mean: np.ndarray
    pictures: tuple[tuple[float, np.ndarray], ...]


class StripBuilder:
    """Collects the windows of one face.

    Args:
        face: the number of its track.
    """

    def __init__(self, face: int | None) -> None:
        self._face = face
        self._spans: list[tuple[float, float]] = []
        self._logits: list[Tensor] = []
        self._pictures: list[tuple[float, np.ndarray]] = []
        self._every = 1

    def add(self, window: Window, logits: Tensor) -> None:
        """The next window, and its logits (K,)."""
        if len(self._spans) % self._every == 0:
            middle = len(window.frames) // 2
            self._pictures.append((float(window.frame_seconds[middle]), window.frames[middle].copy()))
            if len(self._pictures) > MOST_PICTURES:
                self._pictures = self._pictures[::2]
                self._every *= 2
        self._spans.append((window.start_seconds, window.stop_seconds))
        self._logits.append(logits.double())

    def result(self) -> FaceStrip:
        """The collected windows, at least one."""
        logits = torch.stack(self._logits)
        starts, stops = np.array(self._spans).T
        return FaceStrip(
            self._face,
            starts,
            stops,
            logits.softmax(1).numpy(),
            logits.mean(0).softmax(0).numpy(),
            tuple(self._pictures),
        )
