"""Without a GPU only: where there is one, tests/gpu uses it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if torch.cuda.is_available():
        reason = "there is a real GPU"
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        reason = "a fake GPU needs a C++ compiler"
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))
