"""Thousands of generated calls, most of them wrong: no crash, no wrong number, no error without a name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("wrong_calls.py")
SEED = 17


def run(first: int, count: int, progress: Path) -> dict[str, object]:
    """Runs calls of the generator in a process of their own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(PROGRAM), str(SEED), str(first), str(count), str(progress)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    last = progress.read_text().splitlines()[-1:] if progress.exists() else []
    assert done.returncode == 0, f"{last} ended the process: {done.returncode}\n{done.stderr[-3000:]}"
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "count", [2000, pytest.param(20000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
def test_generated_calls(count: int, tmp_path: Path) -> None:
    found = run(0, count, tmp_path / "progress")
    assert found["faults"] == []
    # Both happen often enough to mean something.
    assert int(str(found["refused"])) > count / 2
    assert int(str(found["accepted"])) > count / 20
