"""The fastest backend of an op on known GPUs, where it is not the one that ``backend="auto"`` assumes.

Empty: no GPU has been measured yet, so ``auto`` takes the native kernel where one is compiled, else
Triton, else the reference. An entry comes with its raw file in ``benchmarks/results``.
"""

from __future__ import annotations

#: Device name -> op -> backend.
FASTEST: dict[str, dict[str, str]] = {}
