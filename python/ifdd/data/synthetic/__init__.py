"""A synthetic expression set for demos and tests: drawn faces, seven expressions, many distractions."""

from __future__ import annotations

from .dataset import IDENTITY_NUMBERS, ClipTruth, SyntheticExpressions
from .motion import EXPRESSIONS, Difficulty

__all__ = ["EXPRESSIONS", "IDENTITY_NUMBERS", "ClipTruth", "Difficulty", "SyntheticExpressions"]
