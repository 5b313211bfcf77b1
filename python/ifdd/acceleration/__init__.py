"""The blocks of somebody else's MViT on the kernels of `ifdd_kernels`, in place: :func:`accelerate`."""

from __future__ import annotations

from ifdd.acceleration.report import Report
from ifdd.acceleration.swap import accelerate

__all__ = ["Report", "accelerate"]
