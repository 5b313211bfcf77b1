"""Lifting-scheme video networks for facial expression recognition (IFDD) on the kernels of `ifdd_kernels`."""

from __future__ import annotations

from ifdd.config import IFDDConfig
from ifdd.model import IFDD, IFDDFeatures, IFDDOutput, create_model, list_models

__all__ = ["IFDD", "IFDDConfig", "IFDDFeatures", "IFDDOutput", "create_model", "list_models"]
