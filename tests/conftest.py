"""Without a GPU Triton's kernels are interpreted: Triton reads that when it is first imported."""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "Triton was imported before it could be told to interpret"
    os.environ.setdefault("TRITON_INTERPRET", "1")
