"""A window of video frames to paint on with soft-edged shapes."""

from __future__ import annotations

import numpy as np

from .motion import Floats


def norm(x: Floats, y: Floats) -> Floats:
    """sqrt(x^2 + y^2), vectorised (np.hypot is not, and guards against overflows that cannot happen here)."""
    squares = np.square(x) + np.square(y)
    np.sqrt(squares, out=squares)
    return squares


class Region:
    """A window of the frames: `u`, `v` (T, h, w) face coordinates, `px` (T, 1, 1) pixels per face unit.

    It paints on a copy, because numpy is several times faster on contiguous memory than on rows of a window;
    leaving the `with` block puts the copy back.
    """

    def __init__(self, image: Floats, u: Floats, v: Floats, px: Floats) -> None:
        self.target = image
        self.image, self.u, self.v = (np.ascontiguousarray(array) for array in (image, u, v))
        self.px = px

    def __enter__(self) -> Region:
        return self

    def __exit__(self, *_: object) -> None:
        if self.image is not self.target:
            self.target[...] = self.image

    def soft(self, distance: Floats) -> Floats:
        """Coverage in [0, 1] of the points at `distance` (face units, positive inside)."""
        alpha = distance * self.px
        alpha += 0.5
        return np.clip(alpha, 0.0, 1.0, out=alpha)

    def add(self, alpha: Floats, strength: Floats, colour: Floats) -> None:
        """Paints with the opacity `alpha` (T, h, w) times `strength` (T, 1, 1), unless that is all zero."""
        if strength.any():
            self.paint(alpha * strength, colour)

    def paint(self, alpha: Floats, colour: Floats, shade: Floats | None = None) -> None:
        """Blends `colour` (3,), times `shade` (T, h, w) if any, over the window by `alpha` (T, h, w)."""
        for channel, value in zip(self.image, colour, strict=True):
            change = value - channel if shade is None else value * shade - channel
            change *= alpha
            channel += change

    def segment(self, ua: Floats, va: Floats, ub: Floats, vb: Floats, half_width: float) -> Floats:
        """Coverage of a line of the given half width between two points, each (T, 1, 1)."""
        du, dv = ub - ua, vb - va
        along = ((self.u - ua) * du + (self.v - va) * dv) / (du * du + dv * dv + 1e-6)
        np.clip(along, 0.0, 1.0, out=along)
        return self.soft(half_width - norm(self.u - ua - along * du, self.v - va - along * dv))
