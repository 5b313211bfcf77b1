"""Turning decoded pictures the way a player shows them."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np


class Orientation(NamedTuple):
    """One of the eight ways a picture can lie: rows and columns exchanged first, then mirrored."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    @classmethod
    def of_matrix(cls, matrix: bytes) -> Orientation:
        """Of a display matrix: nine int32 of the machine's byte order, as FFmpeg's side data holds them.

        With (a, b, c, d) the elements 0, 1, 3 and 4, the pixel (x, y) is shown at (a x + c y, b x + d y), y
        downwards (ISO/IEC 14496-12). Scaling and shifts are not applied; other angles count as the nearest
        multiple of 90 degrees. A matrix that is not such a mapping leaves the picture as it is.
        """
        if len(matrix) < 36:
            return UPRIGHT
        a, b, _, c, d = struct.unpack("=5i", matrix[:20])
        if a * d == b * c:
            return UPRIGHT
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @classmethod
    def of_rotation(cls, degrees: str) -> Orientation:
        """Of a `rotate` entry in the metadata: degrees clockwise, as older recordings store them."""
        try:
            quarter = round(float(degrees) / 90) % 4
        except (ValueError, OverflowError):
            return UPRIGHT
        return (UPRIGHT, cls(True, True, False), cls(False, True, True), cls(True, False, True))[quarter]

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Turns (H, W, 3), or (H, W); the same array where there is nothing to turn, else a new one."""
        if self == UPRIGHT:
            return pixels
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.mirror_x:
            pixels = pixels[:, ::-1]
        if self.mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


UPRIGHT = Orientation(False, False, False)
