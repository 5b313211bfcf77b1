"""Who appears in a synthetic clip: an identity drawn from its number alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .motion import EXPRESSIONS, Floats, Unit

_SALT = 20241213  # keeps identity numbers apart from the seeds of clips

_SKIN = ((0.98, 0.84, 0.74), (0.93, 0.74, 0.60), (0.84, 0.62, 0.46), (0.66, 0.45, 0.32), (0.45, 0.29, 0.20))
_HAIR = (
    (0.08, 0.06, 0.05),
    (0.25, 0.15, 0.09),
    (0.45, 0.27, 0.13),
    (0.80, 0.64, 0.36),
    (0.62, 0.60, 0.58),
    (0.55, 0.20, 0.10),
)
_IRIS = ((0.20, 0.11, 0.06), (0.33, 0.20, 0.09), (0.20, 0.38, 0.50), (0.25, 0.40, 0.25))


@dataclass(frozen=True)
class Identity:
    """A person. Lengths are in units of the head's half height, v points down, colours are RGB in [0, 1]."""

    skin: Floats
    hair: Floats
    iris: Floats
    lips: Floats
    clothes: Floats
    background: Floats  # (2, 3) the two colours of the backdrop's pattern
    pattern: Floats  # (4,) cycles along x and y, phases along x and y
    head_width: float
    jaw: float  # taper of the lower face
    hairline: float  # v where the hair ends on the forehead
    fringe: float  # how far the hair comes down at the temples
    parting: float  # slope of the hairline
    hair_length: float  # v where the hair at the sides ends
    bald: bool
    beard: float  # opacity
    eye_spacing: float
    eye_height: float  # v of the eyes
    eye_width: float
    eye_opening: float
    brow_thickness: float
    brow_arch: float
    brow_height: float  # above the eyes
    nose_width: float
    nose_tip: float  # v
    mouth_height: float  # v
    mouth_width: float
    lip_size: float
    glasses: bool
    resting_units: Floats  # direction: action units of the emotion that the neutral face resembles
    resting_share: float  # in [0, 1], multiplied by Difficulty.resting_resemblance


@lru_cache(maxsize=4096)
def make_identity(number: int) -> Identity:
    """The person with this number; the same on every machine, in every split, epoch and data-set seed."""
    rng = np.random.default_rng((_SALT, number))

    def colour(value: object, spread: float) -> Floats:
        return np.clip(np.asarray(value) + rng.uniform(-spread, spread, 3), 0.02, 1.0).astype(np.float32)

    tone = rng.uniform(0.0, len(_SKIN) - 1.0)
    low = int(tone)
    skin = colour(np.array(_SKIN[low]) * (low + 1 - tone) + np.array(_SKIN[low + 1]) * (tone - low), 0.03)
    hair = colour(_HAIR[rng.integers(len(_HAIR))], 0.04)
    long_hair, bald = rng.random() < 0.45, rng.random() < 0.1
    resting = EXPRESSIONS[rng.choice([i for i, e in enumerate(EXPRESSIONS) if e.units])].vector()
    # A resting face is a closed one: with a dropped jaw it would not be taken for neutral.
    resting[Unit.JAW_DROP] *= 0.3
    return Identity(
        skin=skin,
        hair=hair,
        iris=colour(_IRIS[rng.integers(len(_IRIS))], 0.04),
        lips=np.clip(skin * np.array([0.86, 0.62, 0.62]) + rng.uniform(-0.04, 0.06, 3), 0.0, 1.0).astype(
            np.float32
        ),
        clothes=rng.uniform(0.08, 0.9, 3).astype(np.float32),
        background=rng.uniform(0.1, 0.9, (2, 3)).astype(np.float32),
        pattern=rng.uniform((0.2, 0.2, 0.0, 0.0), (1.5, 1.5, 6.3, 6.3)).astype(np.float32),
        head_width=rng.uniform(0.68, 0.82),
        jaw=rng.uniform(0.1, 0.4),
        hairline=rng.uniform(-0.75, -0.56),
        fringe=rng.uniform(0.2, 0.9),
        parting=rng.uniform(-0.25, 0.25),
        hair_length=rng.uniform(0.5, 1.4) if long_hair else rng.uniform(-0.5, -0.1),
        bald=bald,
        beard=rng.uniform(0.25, 0.7) if not long_hair and rng.random() < 0.4 else 0.0,
        eye_spacing=rng.uniform(0.28, 0.36),
        eye_height=rng.uniform(-0.16, -0.06),
        eye_width=rng.uniform(0.15, 0.19),
        eye_opening=rng.uniform(0.07, 0.1),
        brow_thickness=rng.uniform(0.022, 0.045),
        brow_arch=rng.uniform(0.0, 0.06),
        brow_height=rng.uniform(0.23, 0.29),
        nose_width=rng.uniform(0.09, 0.15),
        nose_tip=rng.uniform(0.2, 0.28),
        mouth_height=rng.uniform(0.5, 0.58),
        mouth_width=rng.uniform(0.23, 0.31),
        lip_size=rng.uniform(0.035, 0.075),
        glasses=bool(rng.random() < 0.2),
        resting_units=resting,
        resting_share=float(rng.uniform(0.0, 1.0)),
    )
