"""Native CPU kernels with instruction sets below the one in use: vectors and tiles of other sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ifdd_kernels
from ops.cases import nightly

TESTS = Path(__file__).parents[1]
#: Tests marked ``instruction_sets`` in these files.
FILES = (
    "ops/test_augment_clips.py",
    "ops/test_attention_native.py",
    "ops/test_issm_native.py",
    "ops/test_pool_tokens_native.py",
    "ops/test_split_frames_native.py",
)


def lower() -> list[str]:
    """Compiled and below the one in use, the lowest first."""
    info = ifdd_kernels.build_info()
    compiled = list(info.get("instruction_sets", ()))
    return compiled[: compiled.index(info["instruction_set"])] if compiled else []


@pytest.mark.skipif("IFDD_CPU_ISA" in os.environ, reason="an instruction set is already asked for")
@pytest.mark.skipif(not lower(), reason="the native library is not built, or the lowest set is in use")
@pytest.mark.parametrize(
    "name", [nightly(name, id=name, when=place > 0) for place, name in enumerate(lower())]
)
def test_a_lower_instruction_set(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "-m", "instruction_sets", *(str(TESTS / file) for file in FILES)],
        env={**os.environ, "IFDD_CPU_ISA": name},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
