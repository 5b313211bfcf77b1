"""Marks for tests with special needs."""

import pytest
import torch

#: For tests that record gradients or have several devices.
CPU_BUILD = pytest.mark.skipif(
    torch.version.cuda is not None, reason="a CUDA build of PyTorch asks its driver, which is not imagined"
)
