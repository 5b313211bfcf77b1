"""Lifting-scheme video networks for facial expression recognition (IFDD) on the kernels of `ifdd_kernels`."""

from __future__ import annotations

from ifdd import _interrupt  # noqa: F401 (before the imports that take long)
from ifdd.acceleration import accelerate
from ifdd.config import IFDDConfig
from ifdd.factory import create_model, list_models
from ifdd.features import FeatureExtractor
from ifdd.model import IFDD, IFDDFeatures, IFDDOutput
from ifdd_kernels._version import __version__

__all__ = [
    "IFDD",
    "FeatureExtractor",
    "IFDDConfig",
    "IFDDFeatures",
    "IFDDOutput",
    "__version__",
    "accelerate",
    "create_model",
    "list_models",
]
