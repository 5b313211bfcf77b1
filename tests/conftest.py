"""Which tests run. Without a GPU Triton's kernels are interpreted: Triton reads that when it is imported."""

from __future__ import annotations

import os
import random
import signal
import sys

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "Triton was imported before it could be told to interpret"
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell starts what runs in the background with Ctrl-C ignored, and so its children; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked nightly repeat others at more sizes, dtypes or planted faults."""
    if config.getoption("--nightly"):
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """A test without a generator of its own draws the same numbers alone, in any order and in any process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
