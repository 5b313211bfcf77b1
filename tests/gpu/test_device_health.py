"""A broken device ends its process with the test that broke it, and no other test fails for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpu.device_health import BROKEN, failure

ROOT = Path(__file__).parents[2]

CONFTEST = """
from gpu import device_health
from gpu.device_health import pytest_runtest_teardown

broken = []

def synchronize():
    if broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

device_health.synchronize = synchronize
"""

TESTS = """
import pytest
from gpu import device_health

def launch():
    device_health.synchronize()

@pytest.mark.parametrize("number", range(12))
def test_kernel(number, request):
    launch()
    if number == 4:
        request.config.pluginmanager.getplugin(str(request.config.rootpath / "conftest.py")).broken.append(1)
"""


def _session(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_kernels.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "tests", "python"))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))
    }
    environment |= {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options, str(folder)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_other_processes_go_on(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    ran = _session(tmp_path, "-p", "xdist", "-n", "2")
    assert "1 failed, 12 passed" in ran.stdout, ran.stdout  # the culprit's own assertions passed
    (line,) = (line for line in ran.stdout.splitlines() if line.startswith("FAILED"))
    assert "test_kernel[4]" in line
    for number in range(12):
        assert f"PASSED test_kernels.py::test_kernel[{number}]" in ran.stdout
    assert "left the device broken (CUDA error: an illegal memory access" in ran.stdout + ran.stderr


def test_without_other_processes_the_session_ends_and_says_why(tmp_path: Path) -> None:
    ran = _session(tmp_path)
    assert ran.returncode == BROKEN, ran.stdout
    assert "test_kernel[4] left the device broken (CUDA error: an illegal memory access" in ran.stdout
    assert "test_kernel[5]" not in ran.stdout


def test_an_error_of_one_call_is_not_a_broken_device() -> None:
    errors = [RuntimeError("CUDA error: invalid argument\nmore")]

    def wait() -> None:
        if errors:
            raise errors.pop()

    assert failure(wait) == ("CUDA error: invalid argument", False)
    assert failure(wait) == ("", False)
    errors += [RuntimeError("first"), RuntimeError("second")]
    assert failure(wait) == ("second", True)
