"""Draws a performance as video: soft-edged shapes, all frames at once, with numpy.

The edge of every shape is smoothed over one pixel from its approximate signed distance, so that a motion
smaller than a pixel still changes the image. Small parts are evaluated only in the window they can touch.
"""

from __future__ import annotations

import numpy as np

from .canvas import Region, norm
from .face import Identity
from .motion import Floats, Performance, Unit

_CACHED_PIXELS = 1 << 16  # frames are drawn in groups of about this many pixels, which stay in the cache
_DARK = np.array([0.16, 0.05, 0.05], dtype=np.float32)
_WHITE = np.array([0.96, 0.95, 0.93], dtype=np.float32)
_BLUSH = np.array([1.12, 0.95, 0.92], dtype=np.float32)
_BLACK = np.array([0.04, 0.04, 0.05], dtype=np.float32)


def _per_frame(values: Floats) -> Floats:
    return values[:, None, None]


class _Painter:
    """Draws one identity in (3, T, S, S) float32 frames."""

    def __init__(self, identity: Identity, play: Performance, size: int) -> None:
        self.who, self.play = identity, play
        self.image = np.empty((3, len(play.intensity), size, size), dtype=np.float32)
        self.grid = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
        self.size = size
        self.cos, self.sin = _per_frame(np.cos(play.roll)), _per_frame(np.sin(play.roll))
        self.scale = _per_frame(play.scale)
        self.centre_x = _per_frame(play.position[:, 0] + play.shake[:, 0])
        self.centre_y = _per_frame(play.position[:, 1] + play.shake[:, 1])
        x = (self.grid - self.centre_x) / self.scale  # (T, 1, S)
        y = (self.grid[:, None] - self.centre_y) / self.scale  # (T, S, 1)
        self.whole = Region(
            self.image,
            self.cos * x + self.sin * y,
            self.cos * y - self.sin * x,
            self.scale * np.float32(size / 2),
        )
        self.yaw_sin, self.yaw_cos = _per_frame(np.sin(play.yaw)), _per_frame(np.cos(play.yaw))
        self.pitch_sin = _per_frame(np.sin(play.pitch))

    def unit(self, unit: Unit, side: int | None = None) -> Floats:
        """Strength (T, 1, 1) of a unit on side 0 (left in the image), 1, or the mean of both."""
        values = self.play.units[:, :, unit]
        return _per_frame(values.mean(1) if side is None else values[:, side])

    def turned(self, u: float, v: float, depth: float) -> tuple[Floats, Floats]:
        """Where (u, v), `depth` before the head's axis, appears on the turned head; (T, 1, 1) each."""
        return u * self.yaw_cos + depth * self.yaw_sin, v + depth * self.pitch_sin

    def window(self, cu: Floats, cv: Floats, ru: float, rv: float) -> Region:
        """The pixels within (ru, rv) face units of the moving point (cu, cv); empty outside the frame."""
        x = self.centre_x + self.scale * (self.cos * cu - self.sin * cv)
        y = self.centre_y + self.scale * (self.sin * cu + self.cos * cv)
        rx = self.scale * (self.cos * ru + np.abs(self.sin) * rv)
        ry = self.scale * (self.cos * rv + np.abs(self.sin) * ru)
        half = self.size / 2
        spans = []
        for low, high in ((y - ry, y + ry), (x - rx, x + rx)):
            start = max(0, int((float(low.min()) + 1.0) * half) - 1)
            stop = min(self.size, int((float(high.max()) + 1.0) * half) + 2)
            spans.append(slice(start, max(start, stop)))
        rows, columns = spans
        whole = self.whole
        return Region(
            self.image[:, :, rows, columns], whole.u[:, rows, columns], whole.v[:, rows, columns], whole.px
        )

    def draw(self) -> Floats:
        """All layers from back to front; returns the frames."""
        self.backdrop()
        self.hair_behind()
        self.body()
        self.head()
        for side in (0, 1):
            self.cheek(side)
            self.eye(side)
            self.brow(side)
        self.nose()
        self.mouth()
        if self.who.glasses:
            self.glasses()
        self.occluder()
        self.light()
        return self.image

    def backdrop(self) -> None:
        cycles_x, cycles_y, phase_x, phase_y = self.who.pattern
        shake = self.play.shake
        x = np.sin(np.pi * cycles_x * (self.grid - _per_frame(shake[:, 0])) + phase_x)
        y = np.sin(np.pi * cycles_y * (self.grid[:, None] - _per_frame(shake[:, 1])) + phase_y)
        pattern = 0.25 * x + (0.5 + 0.25 * y)
        first, second = self.who.background
        for channel, low, high in zip(self.image, first, second, strict=True):
            np.multiply(pattern, high - low, out=channel)
            channel += low

    def hair_behind(self) -> None:
        who = self.who
        if who.bald:
            return
        top = -1.12
        middle, half = (top + who.hair_length) / 2, (who.hair_length - top) / 2
        with self.window(
            np.float32(0.0) * self.cos, np.float32(middle) + 0 * self.cos, 1.0, half + 0.05
        ) as region:
            u, v = region.u, region.v
            # Round above, straight below: an ellipse down to v = 0, then a band.
            above = np.minimum(v, 0.0) / -top
            width = who.head_width + 0.13
            distance = width - norm(u, above * width)
            region.paint(region.soft(np.minimum(distance, who.hair_length - v)), who.hair)

    def body(self) -> None:
        who = self.who
        zero = np.float32(0.0) * self.cos
        with self.window(zero, zero + 1.6, 3.0, 0.6) as shoulders:
            shape = 1.0 - norm(shoulders.u * (1 / 1.5), (shoulders.v - 2.1) * (1 / 0.95))
            shoulders.paint(shoulders.soft(shape), who.clothes)
        with self.window(zero, zero + 0.95, 0.4, 0.35) as neck:
            shape = np.minimum(0.36 - np.abs(neck.u), 0.33 - np.abs(neck.v - 0.95))
            neck.paint(neck.soft(shape), who.skin * 0.72)

    def head(self) -> None:
        who = self.who
        zero = np.float32(0.0) * self.cos
        with self.window(zero, zero, 0.95, 1.15) as region:
            u, v = region.u, region.v
            below = np.maximum(v, 0.0)
            stretched = v - below * (
                0.11 * np.clip(self.unit(Unit.JAW_DROP), 0.0, 1.0)
            )  # the jaw lengthens the face
            width = np.square(below, out=below)
            width *= -who.jaw
            width += 1.0
            width *= who.head_width
            radius = norm(u / width, stretched)
            inside = region.soft((1.0 - radius) * 0.8)
            shade = np.clip((radius - 0.6) * 2.2, 0.0, 1.0)
            shade *= shade
            shade *= -0.18
            shade += 1.0
            region.paint(inside, who.skin, shade)
            if who.beard:
                edge = 0.34 + 0.25 * np.square(u - self.turned(0.0, 0.0, 0.5)[0]) * -1.6
                growth = np.clip((v - edge - 0.12 * self.pitch_sin) * 6.0, 0.0, 1.0)
                growth *= inside
                region.paint(growth * who.beard, who.hair)
            if not who.bald:
                # The hair on the forehead reaches a little beyond the skull.
                scalp = region.soft((1.1 - radius) * 0.8)
                centre = self.turned(0.0, 0.0, 0.25)[0]
                line = np.square(u - centre)
                line *= who.fringe
                line += who.parting * u
                line += who.hairline + 0.25 * self.pitch_sin
                line -= v
                region.paint(region.soft(line) * scalp, who.hair)

    def eye(self, side: int) -> None:
        who = self.who
        outward = 1.0 if side else -1.0
        cu, cv = self.turned(outward * who.eye_spacing, who.eye_height, 0.55)
        with self.window(cu, cv, 0.26, 0.26) as region:
            raise_, tight = self.unit(Unit.UPPER_LID_RAISE, side), self.unit(Unit.LID_TIGHTEN, side)
            cheek, wrinkle = self.unit(Unit.CHEEK_RAISE, side), self.unit(Unit.NOSE_WRINKLE, side)
            droop, open_ = self.unit(Unit.LID_DROOP, side), 1.0 - _per_frame(self.play.blink)
            lower = who.eye_opening * np.maximum(
                0.75 - 0.5 * cheek - 0.35 * tight - 0.3 * wrinkle + 0.15 * raise_, 0.05
            )
            upper = who.eye_opening * np.maximum(
                1.0 + 0.8 * raise_ - 0.4 * tight - 0.25 * cheek - 0.25 * wrinkle - 0.6 * droop, 0.12
            )
            upper = upper * open_ - lower * 0.8 * (1.0 - open_)
            u, v = region.u - cu, region.v - cv
            p2 = np.square(u * (1.0 / who.eye_width))
            profile = np.maximum(1.0 - p2, -0.5)
            lid = v + upper * profile  # positive below the upper lid
            ends = np.clip((1.15 - p2) * 6.0, 0.0, 1.0)
            alpha = region.soft(np.minimum(lid, lower * profile - v)) * ends
            region.paint(alpha, _WHITE)
            gaze = self.play.gaze
            radius = norm(u - _per_frame(gaze[:, 0]), v - _per_frame(gaze[:, 1]))
            region.paint(alpha * region.soft(0.078 - radius), who.iris)
            region.paint(alpha * region.soft(0.035 - radius), _BLACK)
            region.paint(region.soft(0.018 - np.abs(lid)) * ends * 0.85, _DARK)
            pouch = region.soft(0.014 - np.abs(v - (lower + 0.05) * profile - 0.02)) * ends
            region.add(pouch, np.clip(0.12 + 0.5 * cheek + 0.25 * wrinkle, 0.0, 0.7), who.skin * 0.5)

    def brow(self, side: int) -> None:
        who = self.who
        outward = 1.0 if side else -1.0
        inner, outer = self.unit(Unit.INNER_BROW_RAISE, side), self.unit(Unit.OUTER_BROW_RAISE, side)
        lowered, wrinkle = self.unit(Unit.BROW_LOWER, side), self.unit(Unit.NOSE_WRINKLE, side)
        cu, cv = self.turned(outward * (who.eye_spacing + 0.01), who.eye_height - who.brow_height, 0.55)
        cu = cu - outward * 0.05 * lowered
        with self.window(cu, cv, 0.28, 0.32) as region:
            p = (region.u - cu) * (outward / 0.21)  # -1 at the inner, 1 at the outer end
            near = 0.5 - 0.5 * p
            line = (-0.22 * inner + 0.16 * lowered + 0.05 * wrinkle) * near
            line -= 0.16 * outer * (1.0 - near)
            line += 0.06 * lowered + 0.04 * wrinkle - who.brow_arch * (1.0 - np.square(p)) + cv
            thickness = who.brow_thickness * (0.75 + 0.5 * near)
            alpha = region.soft(thickness - np.abs(region.v - line))
            alpha *= region.soft((1.0 - np.abs(p)) * 0.21)
            region.paint(alpha * 0.9, who.hair * 0.7)

    def cheek(self, side: int) -> None:
        who = self.who
        outward = 1.0 if side else -1.0
        cu, cv = self.turned(outward * 0.42, 0.22, 0.45)
        lift = np.clip(self.unit(Unit.CHEEK_RAISE, side), 0.0, 1.0)
        with self.window(cu, cv, 0.2, 0.3) as region:
            bulge = 1.0 - np.square((region.u - cu) * 5.0) - np.square((region.v - cv + 0.06 * lift) * 5.0)
            np.maximum(bulge, 0.0, out=bulge)
            region.paint(bulge * (0.08 + 0.4 * lift), np.minimum(who.skin * _BLUSH, 1.0))

    def nose(self) -> None:
        who = self.who
        wrinkle = self.unit(Unit.NOSE_WRINKLE)
        cu, cv = self.turned(0.0, who.nose_tip, 0.8)
        cv = cv - 0.05 * wrinkle
        width = who.nose_width * (1.0 + 0.3 * wrinkle)
        shade = who.skin * 0.55
        with self.window(cu, cv, 0.24, 0.12) as region:
            u, v = region.u - cu, region.v - cv
            p2 = np.square(u / width)
            alpha = region.soft(0.026 - np.abs(v + 0.05 * p2)) * np.clip((1.1 - p2) * 4.0, 0.0, 1.0)
            region.paint(alpha * 0.75, shade)
        bridge_u, bridge_v = self.turned(0.0, who.eye_height, 0.65)
        with self.window(bridge_u, bridge_v, 0.2, 0.3) as region:
            u, v = region.u - bridge_u, region.v - bridge_v
            # Two furrows across the bridge (AU 9) and the two between the brows (AU 4).
            across = region.soft(0.02 - np.abs(np.abs(v - 0.03 + 1.5 * np.square(u)) - 0.035))
            across *= np.clip((0.12 - np.abs(u)) * 14.0, 0.0, 1.0)
            region.add(across, np.clip(0.75 * wrinkle, 0.0, 0.8), shade)
            frown = region.soft(0.014 - np.abs(np.abs(u) - 0.045)) * region.soft(0.08 - np.abs(v + 0.19))
            region.add(frown, np.clip(0.6 * self.unit(Unit.BROW_LOWER), 0.0, 0.7), shade)

    def mouth(self) -> None:
        who = self.who
        jaw, press = self.unit(Unit.JAW_DROP), self.unit(Unit.LIP_PRESS)
        pull, stretch = self.unit(Unit.LIP_CORNER_PULL), self.unit(Unit.LIP_STRETCH)
        lift, wrinkle = self.unit(Unit.UPPER_LIP_RAISE), self.unit(Unit.NOSE_WRINKLE)
        cu, cv = self.turned(0.0, who.mouth_height, 0.65)
        cv = cv + 0.02 * jaw
        width = who.mouth_width * np.maximum(
            1.0 + 0.3 * pull + 0.4 * stretch - 0.3 * jaw * (1 - stretch) - 0.3 * press, 0.5
        )
        left, right = (
            -0.19 * self.unit(Unit.LIP_CORNER_PULL, side)
            + 0.22 * self.unit(Unit.LIP_CORNER_DEPRESS, side)
            + 0.04 * self.unit(Unit.LIP_STRETCH, side)
            for side in (0, 1)
        )
        self.folds(cu, cv, width, left, right)
        with self.window(cu, cv + 0.08, 0.52, 0.42) as region:
            u, v = region.u - cu, region.v - cv
            p = u / width
            p2 = np.square(p)
            profile = np.maximum(1.0 - p2, 0.0)
            corner = 0.5 * (left + right) + np.clip(p, -1.0, 1.0) * (0.5 * (right - left))
            line = corner * np.minimum(p2, 1.4) - 0.05 * (self.unit(Unit.CHIN_RAISE) - 0.5 * pull) * profile
            v = v - line  # distance below the line between the lips
            gap_up = np.maximum(0.08 * jaw + 0.085 * lift + 0.03 * wrinkle, 0.0)
            gap_down = np.maximum(0.3 * jaw + 0.04 * stretch + 0.045 * lift + 0.03 * pull, 0.0)
            thin = np.maximum(1.0 - 0.75 * press - 0.2 * stretch, 0.15)
            lip_up, lip_down = who.lip_size * thin, who.lip_size * 1.35 * thin
            ends = region.soft((1.0 - np.abs(p)) * width)
            # Edges of an open mouth are rounder than a parabola; the raised upper lip is nearly square.
            square = np.sqrt(profile)
            open_up, open_down = gap_up * square, gap_down * (0.5 * (square + profile))
            lips = region.soft(np.minimum(v + open_up + lip_up * profile, open_down + lip_down * profile - v))
            region.paint(lips * ends, who.lips)
            opening = np.minimum(v + open_up, open_down - v)
            inside = region.soft(opening) * ends
            region.add(inside, np.clip((gap_up + gap_down) * 40.0, 0.0, 1.0), _DARK)
            teeth = np.minimum(opening, 0.07 - (v + open_up)) - 0.01
            shown = np.clip(0.4 + 0.6 * (lift + stretch + pull), 0.0, 0.95)
            region.add(region.soft(teeth) * ends, shown, _WHITE)
            closed = region.soft(0.014 + 0.014 * press - np.abs(v)) * ends
            region.add(closed, np.clip(1.0 - (gap_up + gap_down) * 12.0, 0.0, 0.85), _DARK)
            chin = np.clip(0.6 * self.unit(Unit.CHIN_RAISE) + 0.3 * press, 0.0, 0.6)
            dent = 1.0 - np.square(u * 6.0) - np.square((v - 0.17) * 16.0)
            region.add(np.maximum(dent, 0.0), chin, who.skin * 0.6)

    def folds(self, cu: Floats, cv: Floats, width: Floats, left: Floats, right: Floats) -> None:
        """Nasolabial folds from the wings of the nose past the corners of the mouth."""
        who = self.who
        for side, corner in ((0, left), (1, right)):
            outward = 1.0 if side else -1.0
            depth = (
                0.1
                + 0.5 * self.unit(Unit.LIP_CORNER_PULL, side)
                + 0.4 * self.unit(Unit.NOSE_WRINKLE, side)
                + 0.2 * self.unit(Unit.UPPER_LIP_RAISE, side)
            )
            nose_u, nose_v = self.turned(outward * (who.nose_width + 0.03), who.nose_tip - 0.02, 0.65)
            end_u, end_v = cu + outward * (width + 0.06), cv + corner * 0.8 - 0.02
            with self.window(0.5 * (nose_u + end_u), 0.5 * (nose_v + end_v), 0.22, 0.36) as region:
                alpha = region.segment(
                    nose_u, nose_v - 0.04 * self.unit(Unit.NOSE_WRINKLE), end_u, end_v, 0.016
                )
                region.add(alpha, np.clip(depth, 0.0, 0.75), who.skin * 0.55)

    def glasses(self) -> None:
        who = self.who
        centre_u, cv = self.turned(0.0, who.eye_height + 0.02, 0.7)
        spread = who.eye_spacing * self.yaw_cos
        with self.window(centre_u, cv, who.eye_spacing + 0.3, 0.24) as region:
            u, v = np.abs(region.u - centre_u), region.v - cv
            ring = np.abs(norm((u - spread) * 0.85, v) - 0.185)
            bridge = np.maximum(u - (spread - 0.2), np.abs(v + 0.03))
            region.paint(region.soft(0.018 - np.minimum(ring, bridge)) * 0.9, _BLACK)

    def occluder(self) -> None:
        thing = self.play.occluder
        if thing is None:
            return
        x = self.grid - _per_frame(thing.centre[:, 0])
        y = self.grid[:, None] - _per_frame(thing.centre[:, 1])
        cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
        along, across = cos * x + sin * y, cos * y - sin * x
        radius = norm(along / np.float32(thing.radius[0]), across / np.float32(thing.radius[1]))
        edge = np.float32(min(thing.radius) * self.size / 2)
        alpha = np.clip((1.0 - radius) * edge + 0.5, 0.0, 1.0)
        shade = np.clip(1.15 - 0.4 * radius, 0.6, 1.0)
        self.whole.paint(alpha, thing.colour, shade)

    def light(self) -> None:
        gain, slope_x, slope_y = (_per_frame(self.play.light[:, i]) for i in range(3))
        field = (gain + slope_x * self.grid) + slope_y * self.grid[:, None]
        for channel, tint in zip(self.image, self.play.tint, strict=True):
            channel *= field
            channel *= tint


def render(identity: Identity, play: Performance, image_size: int) -> Floats:
    """Frames (3, T, S, S) float32 of `identity` giving the performance `play`; RGB, not yet clipped."""
    frames = len(play.intensity)
    image = np.empty((3, frames, image_size, image_size), dtype=np.float32)
    step = max(1, _CACHED_PIXELS // image_size**2)
    for start in range(0, frames, step):
        part = slice(start, start + step)
        image[:, part] = _Painter(identity, play.frames(part), image_size).draw()
    return image


def add_noise(image: Floats, rng: np.random.Generator, deviation: float) -> None:
    """Adds uniform sensor noise of the given standard deviation in place and clips to [0, 1]."""
    if deviation > 0:
        # Random bytes cost a tenth of normal draws; 0..255 has mean 127.5 and deviation 73.9.
        grains = np.frombuffer(rng.bytes(image.size), dtype=np.uint8).reshape(image.shape)
        scale = np.float32(deviation / 73.9)
        noise = grains.astype(np.float32)
        noise *= scale
        noise -= np.float32(127.5) * scale
        image += noise
    np.clip(image, 0.0, 1.0, out=image)
