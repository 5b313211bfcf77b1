"""The committed table of what the kernels need on a GPU is the table of the kernels there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ifdd_kernels._operator import OPERATORS

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_resources.json"
pytestmark = pytest.mark.skipif(
    version("triton") != json.loads(TABLE.read_text())["triton"], reason="the table is of another Triton"
)


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.triton_resources", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("op", sorted(n for n, o in OPERATORS.items() if "triton" in o.backends))
def test_table_is_complete_and_nothing_spills(op: str) -> None:
    ran = _run("--check", "--only", op)
    assert ran.returncode == 0, ran.stdout + ran.stderr
