"""The script of a synthetic clip: facial action units over time, head motion, light and other distractors.

Action units follow the Facial Action Coding System (Ekman & Friesen, 1978); the mixtures that make up each
emotion are the usual EMFACS prototypes (Friesen & Ekman, 1983), strengths chosen for these drawn faces.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[
    np.floating[Any]
]  # float32 throughout; NumPy's stubs lose that in mixed expressions


class Unit(IntEnum):
    """Facial action units that the renderer can move; the comment gives the FACS number."""

    INNER_BROW_RAISE = 0  # AU 1
    OUTER_BROW_RAISE = 1  # AU 2
    BROW_LOWER = 2  # AU 4
    UPPER_LID_RAISE = 3  # AU 5
    CHEEK_RAISE = 4  # AU 6
    LID_TIGHTEN = 5  # AU 7
    NOSE_WRINKLE = 6  # AU 9
    UPPER_LIP_RAISE = 7  # AU 10
    LIP_CORNER_PULL = 8  # AU 12
    LIP_CORNER_DEPRESS = 9  # AU 15
    CHIN_RAISE = 10  # AU 17
    LIP_STRETCH = 11  # AU 20
    LIP_PRESS = 12  # AU 24
    JAW_DROP = 13  # AU 26
    LID_DROOP = 14  # AU 43, partly


@dataclass(frozen=True)
class Expression:
    """One emotion: its action units at the apex and its course over the active span."""

    name: str
    units: dict[Unit, float]
    onset: float = 0.3  # share of the active span spent rising
    offset: float = 0.3  # share of the active span spent falling
    tremor: float = 0.0  # relative trembling of the intensity

    def vector(self) -> Floats:
        """Strengths of all units, float32 (units,)."""
        strengths = np.zeros(len(Unit), dtype=np.float32)
        for unit, strength in self.units.items():
            strengths[unit] = strength
        return strengths


EXPRESSIONS: tuple[Expression, ...] = (
    Expression(
        "Happy",
        {Unit.CHEEK_RAISE: 0.9, Unit.LIP_CORNER_PULL: 1.0, Unit.JAW_DROP: 0.2, Unit.UPPER_LIP_RAISE: 0.2},
        onset=0.35,
        offset=0.35,
    ),
    Expression(
        "Sad",
        {
            Unit.INNER_BROW_RAISE: 1.2,
            Unit.BROW_LOWER: 0.4,
            Unit.LIP_CORNER_DEPRESS: 1.2,
            Unit.CHIN_RAISE: 0.6,
            Unit.LID_DROOP: 0.6,
        },
        onset=0.5,
        offset=0.3,
    ),
    Expression("Neutral", {}),
    Expression(
        "Angry",
        {Unit.BROW_LOWER: 1.1, Unit.UPPER_LID_RAISE: 0.3, Unit.LID_TIGHTEN: 0.8, Unit.LIP_PRESS: 1.1},
        onset=0.25,
        offset=0.35,
    ),
    Expression(
        "Surprise",
        {
            Unit.INNER_BROW_RAISE: 1.0,
            Unit.OUTER_BROW_RAISE: 1.0,
            Unit.UPPER_LID_RAISE: 0.8,
            Unit.JAW_DROP: 1.0,
        },
        onset=0.1,
        offset=0.5,
    ),
    Expression(
        "Disgust",
        {
            Unit.NOSE_WRINKLE: 1.0,
            Unit.UPPER_LIP_RAISE: 1.0,
            Unit.BROW_LOWER: 0.4,
            Unit.LID_TIGHTEN: 0.5,
            Unit.LIP_CORNER_DEPRESS: 0.3,
        },
    ),
    Expression(
        "Fear",
        {
            Unit.INNER_BROW_RAISE: 1.0,
            Unit.OUTER_BROW_RAISE: 0.4,
            Unit.BROW_LOWER: 0.6,
            Unit.UPPER_LID_RAISE: 1.0,
            Unit.LIP_STRETCH: 1.0,
            Unit.JAW_DROP: 0.3,
        },
        onset=0.15,
        offset=0.35,
        tremor=0.15,
    ),
)


@dataclass(frozen=True)
class Difficulty:
    """How hard the set is. The defaults are the demo's.

    A pair is a (low, high) range drawn from uniformly for each clip; where a knob only scales something, 1 is
    the usual amount. Raising any knob but the first two makes the set harder.
    """

    active_fraction: tuple[float, float] = (0.5, 0.7)
    """Share of the clip between the first onset and the end of the offset; the rest is the neutral face."""
    intensity: tuple[float, float] = (0.9, 1.0)
    """Strength of the expression at its apex, relative to the full prototype."""
    resting_resemblance: float = 0.25
    """Largest strength at which an identity's NEUTRAL face looks like some (random) emotion, in [0, 1]."""
    unit_variation: float = 0.15
    """Relative spread of each action unit's strength from clip to clip, in [0, 1]."""
    asymmetry: float = 0.2
    """Largest relative difference between the two halves of the face, in [0, 1]."""
    head_motion: float = 0.5
    """Scales turning, nodding, rolling and moving of the head, >= 0."""
    camera_jitter: float = 0.5
    """Scales the frame-to-frame shaking of the camera, >= 0."""
    light_change: float = 0.5
    """Scales slow changes of brightness, direction and tint of the light, and sudden steps in it, >= 0."""
    talk_probability: float = 0.3
    """Chance that the person speaks during a part of the clip: mouth motion without emotion, in [0, 1]."""
    brow_flash_probability: float = 0.2
    """Chance of a short weak raise of the brows that belongs to no emotion, in [0, 1]."""
    blink_probability: float = 0.5
    """Chance of one blink in a clip, in [0, 1]."""
    occluder_probability: float = 0.2
    """Chance that a hand or microphone moves into the face for a part of the clip, in [0, 1]."""
    noise: float = 0.015
    """Standard deviation of the sensor noise in units of the image's range [0, 1], >= 0."""

    @classmethod
    def posed(cls) -> Difficulty:
        """An undiluted set, as from a laboratory: mostly full intensity, still, nothing else moves."""
        return cls(
            active_fraction=(0.8, 0.95),
            intensity=(1.0, 1.0),
            resting_resemblance=0.0,
            unit_variation=0.1,
            asymmetry=0.1,
            head_motion=0.3,
            camera_jitter=0.3,
            light_change=0.3,
            talk_probability=0.0,
            brow_flash_probability=0.0,
            blink_probability=0.2,
            occluder_probability=0.0,
            noise=0.01,
        )

    def __post_init__(self) -> None:
        for name in ("active_fraction", "intensity"):
            pair = getattr(self, name)
            if not (isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= 1):
                raise ValueError(
                    f"Difficulty.{name} must be a pair (low, high) with 0 < low <= high <= 1, got {pair!r}"
                )
        for name in ("head_motion", "camera_jitter", "light_change", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Difficulty.{name} must be >= 0, got {getattr(self, name)!r}")
        for field in fields(self):
            unit_range = field.name.endswith("_probability") or field.name in (
                "resting_resemblance",
                "unit_variation",
                "asymmetry",
            )
            if unit_range and not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(
                    f"Difficulty.{field.name} must lie in [0, 1], got {getattr(self, field.name)!r}"
                )


@dataclass(frozen=True)
class Occluder:
    """An elliptic thing (hand, microphone) before the face; coordinates of the image, which spans [-1, 1]."""

    centre: Floats  # (T, 2) x, y
    radius: tuple[float, float]
    angle: float
    colour: Floats  # (3,)

    def frames(self, part: slice) -> Occluder:
        """The same occluder during some of the frames."""
        return Occluder(self.centre[part], self.radius, self.angle, self.colour)


@dataclass(frozen=True)
class Performance:
    """All that moves in a clip of T frames, float32."""

    intensity: Floats  # (T,) of the expression, in [0, 1]: the ground truth of onset, apex and offset
    units: Floats  # (T, 2, units) of the left and right half of the face (as seen in the image)
    blink: Floats  # (T,) 1 = eyes closed
    gaze: Floats  # (T, 2) of the iris, in face units
    position: Floats  # (T, 2) of the face centre, image coordinates
    scale: Floats  # (T,) half height of the head, image coordinates
    roll: Floats  # (T,) radians
    yaw: Floats  # (T,) radians
    pitch: Floats  # (T,) radians
    shake: Floats  # (T, 2) shift of the camera, image coordinates (face and background alike)
    light: Floats  # (T, 3) gain, and its slopes along x and y
    tint: Floats  # (3,) colour of the light
    occluder: Occluder | None

    def frames(self, part: slice) -> Performance:
        """The same performance during some of the frames."""
        whole: dict[str, Any] = {
            "tint": self.tint,
            "occluder": self.occluder and self.occluder.frames(part),
        }
        per_frame = {
            field.name: getattr(self, field.name)[part] for field in fields(self) if field.name not in whole
        }
        return Performance(**per_frame, **whole)


def _smoothstep(x: Floats) -> Floats:
    x = np.clip(x, 0.0, 1.0)
    y: Floats = x * x * (3.0 - 2.0 * x)
    return y


def _bump(time: Floats, centre: float, half_width: float) -> Floats:
    """Raised cosine of height 1 that is zero beyond `half_width` from `centre`."""
    return _smoothstep(1.0 - np.abs(time - centre) / half_width)


def _drift(rng: np.random.Generator, time: Floats, amplitude: float) -> Floats:
    """Smooth random motion around zero: three sinusoids of 0.2 to 1.8 periods in a clip."""
    cycles = rng.uniform(0.2, 1.8, 3)
    phases = rng.uniform(0.0, 2.0 * np.pi, 3)
    weights = rng.uniform(-amplitude, amplitude, 3)
    waves = weights @ np.sin(2.0 * np.pi * cycles[:, None] * time + phases[:, None])
    return np.asarray(waves, dtype=np.float32)


def _course(rng: np.random.Generator, time: Floats, expression: Expression, difficulty: Difficulty) -> Floats:
    """Intensity (T,): neutral, onset, apex, offset, neutral, wholly inside the clip."""
    span = rng.uniform(*difficulty.active_fraction)
    start = rng.uniform(0.0, 1.0 - span)
    peak = rng.uniform(*difficulty.intensity)
    onset = span * expression.onset * rng.uniform(0.7, 1.3)
    offset = span * expression.offset * rng.uniform(0.7, 1.3)
    phase = rng.uniform(0.0, 2.0 * np.pi)
    if not expression.units:
        return np.zeros_like(time)
    rise = _smoothstep((time - start) / onset)
    fall = _smoothstep((start + span - time) / offset)
    tremor = 1.0 + expression.tremor * np.sin(2.0 * np.pi * 7.0 * time + phase)
    return np.asarray(np.clip(peak * np.minimum(rise, fall) * tremor, 0.0, 1.0), dtype=np.float32)


def _talk(rng: np.random.Generator, time: Floats) -> Floats:
    """Units (T, units) of a stretch of speech: the jaw opens per syllable, the lips stretch and round."""
    syllables = rng.uniform(3.0, 6.0)
    phase = rng.uniform(0.0, 2.0 * np.pi)
    envelope = _bump(time, rng.uniform(0.0, 1.0), rng.uniform(0.25, 0.6)) * rng.uniform(0.5, 1.0)
    open_close = 0.5 - 0.5 * np.cos(2.0 * np.pi * syllables * time + phase + _drift(rng, time, 0.8))
    units = np.zeros((len(time), len(Unit)), dtype=np.float32)
    units[:, Unit.JAW_DROP] = 0.55 * envelope * open_close
    units[:, Unit.LIP_STRETCH] = envelope * _drift(rng, time, 0.25)
    units[:, Unit.LIP_PRESS] = 0.5 * envelope * (1.0 - open_close) ** 2
    units[:, Unit.UPPER_LIP_RAISE] = 0.25 * envelope * open_close
    return units


def _occluder(rng: np.random.Generator, time: Floats, skin: Floats) -> Occluder:
    """Comes in from a side or from below, stays over a part of the face, and leaves."""
    side = rng.choice((-1.0, 1.0))
    target = np.array([rng.uniform(-0.45, 0.45), rng.uniform(-0.1, 0.8)])
    outside = np.array([side * rng.uniform(1.2, 1.7), rng.uniform(0.6, 1.8)])
    presence = _bump(time, rng.uniform(0.1, 0.9), rng.uniform(0.2, 0.5))[:, None]
    wobble = np.stack([_drift(rng, time, 0.05), _drift(rng, time, 0.05)], 1)
    hand = rng.random() < 0.6
    radius = (
        (rng.uniform(0.16, 0.26), rng.uniform(0.22, 0.36))
        if hand
        else (rng.uniform(0.1, 0.16), rng.uniform(0.3, 0.5))
    )
    colour = skin * rng.uniform(0.85, 1.05) if hand else rng.uniform(0.05, 0.3, 3)
    centre = outside + (target - outside) * presence + wobble
    return Occluder(
        centre.astype(np.float32), radius, rng.uniform(-0.8, 0.8), np.asarray(colour, dtype=np.float32)
    )


def perform(
    rng: np.random.Generator,
    label: int,
    resting: Floats,
    skin: Floats,
    frames: int,
    difficulty: Difficulty,
) -> Performance:
    """Draws a performance of expression `label` by somebody with `resting` units (units,) and `skin` (3,).

    All durations are shares of the clip, so a clip of 8 and one of 32 frames show the same event.
    """
    expression = EXPRESSIONS[label]
    time = ((np.arange(frames) + 0.5) / frames).astype(np.float32)
    intensity = _course(rng, time, expression, difficulty)
    gaze = np.stack([_drift(rng, time, 0.03), _drift(rng, time, 0.012)], 1)
    scale = rng.uniform(0.82, 0.92)
    # Everything above is drawn before the distractions, so their knobs leave it as it is.
    strengths = expression.vector() * rng.uniform(
        1.0 - difficulty.unit_variation, 1.0 + difficulty.unit_variation, len(Unit)
    )
    units = intensity[:, None] * strengths + resting
    if rng.random() < difficulty.talk_probability:
        units += _talk(rng, time)
    if rng.random() < difficulty.brow_flash_probability:
        flash = rng.uniform(0.3, 0.6) * _bump(time, rng.uniform(0.0, 1.0), rng.uniform(0.1, 0.2))
        units[:, Unit.INNER_BROW_RAISE] += flash
        units[:, Unit.OUTER_BROW_RAISE] += flash
    lean = rng.uniform(-0.5, 0.5, len(Unit)) * difficulty.asymmetry
    both = np.clip(np.stack([units * (1.0 - lean), units * (1.0 + lean)], 1), -0.5, 1.4)

    blink = np.zeros_like(time)
    if rng.random() < difficulty.blink_probability:
        blink = _bump(time, rng.uniform(0.0, 1.0), max(0.06, 1.5 / frames))
    motion, jitter, change = difficulty.head_motion, 0.012 * difficulty.camera_jitter, difficulty.light_change
    gain = 1.0 + change * (rng.uniform(-0.15, 0.1) + _drift(rng, time, 0.07))
    if rng.random() < 0.25:  # a lamp goes on or off
        gain += change * rng.uniform(-0.18, 0.18) * (time > rng.uniform(0.1, 0.9))
    slopes = [change * (rng.uniform(-0.2, 0.2) + _drift(rng, time, 0.05)) for _ in range(2)]
    position = [motion * (rng.uniform(-0.05, 0.05) + _drift(rng, time, 0.03)) for _ in range(2)]
    return Performance(
        intensity=intensity,
        units=both.astype(np.float32),
        blink=blink,
        gaze=gaze,
        position=np.stack(position, 1).astype(np.float32),
        scale=(scale * (1.0 + motion * _drift(rng, time, 0.02))).astype(np.float32),
        roll=(motion * (rng.uniform(-0.08, 0.08) + _drift(rng, time, 0.03))).astype(np.float32),
        yaw=(motion * (rng.uniform(-0.15, 0.15) + _drift(rng, time, 0.08))).astype(np.float32),
        pitch=(motion * (rng.uniform(-0.08, 0.08) + _drift(rng, time, 0.05))).astype(np.float32),
        shake=(jitter * rng.standard_normal((frames, 2))).astype(np.float32),
        light=np.stack([gain, *slopes], 1).astype(np.float32),
        tint=(1.0 + change * rng.uniform(-0.08, 0.08, 3)).astype(np.float32),
        occluder=_occluder(rng, time, skin) if rng.random() < difficulty.occluder_probability else None,
    )
