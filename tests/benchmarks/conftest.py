"""A small network's cases and a session that writes to a temporary file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.suite.machine import Rates
from benchmarks.suite.results import Writer
from benchmarks.suite.runner import Session
from benchmarks.suite.shapes import NetworkShape, network_shape
from ifdd import IFDDConfig


@pytest.fixture(scope="session")
def shape() -> NetworkShape:
    return network_shape(IFDDConfig(backbone="mvit_nano", image_size=64))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(
        "cpu",
        Writer(tmp_path / "rows.jsonl", {"device": "test", "threads": 1}),
        Rates(1e10, {"fp32": 1e11, "bf16": 1e11}),
        "cpu",
        deadline=time.perf_counter() + 60,
        row_budget_s=0.05,
        most=5,
        say=lambda line: None,
    )
