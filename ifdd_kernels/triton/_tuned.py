"""Chosen configurations of known devices, so that the first step there times nothing.

Empty: no device has been measured yet. An entry is what the tuning cache of that device holds
(:func:`ifdd_kernels.triton._tuning.cache_directory`): device name -> key -> configuration.
"""

from __future__ import annotations

from typing import Any

CHOSEN: dict[str, dict[str, dict[str, Any]]] = {}
