"""Seeds for the parts of a training."""

from __future__ import annotations

import numpy as np


def derived_seed(*numbers: int) -> int:
    """One well-mixed 32-bit seed of (seed, epoch, ...)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
