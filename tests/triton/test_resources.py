"""The committed table of what the kernels need on a GPU is the table of the kernels there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_resources.json"
pytestmark = pytest.mark.skipif(
    version("triton") != json.loads(TABLE.read_text())["triton"], reason="the table is of another Triton"
)


def test_table_is_complete_and_nothing_spills() -> None:
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.triton_resources", "--check"],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
