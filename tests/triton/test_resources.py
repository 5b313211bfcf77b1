"""The committed table of what the kernels need on a GPU is the table of the kernels there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ifdd_kernels._operator import OPERATORS

#: Ops of which rows are still to be compiled (`python -m benchmarks.triton_resources` without a GPU, some
#: seconds a row) or spill and need other tiles:
#:   attention_key_gradient BLOCK_Q=64 BLOCK_K=128 warps=8 stages=2 sm_90
#:   attention_key_gradient BLOCK_Q=64 BLOCK_K=64 warps=4 stages=2 sm_90
#:   attention_query_gradient BLOCK_Q=128 BLOCK_K=64 TAIL=64 warps=8 stages=2 sm_90
#:   attention_query_gradient BLOCK_Q=64 BLOCK_K=64 TAIL=64 warps=4 stages=2 sm_90
#: What the table has of them must be current and without spills all the same.
PENDING = frozenset({"pooled_attention"})


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)  # the interpreter's kernels cannot be compiled
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.triton_resources", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("op", sorted(n for n, o in OPERATORS.items() if "triton" in o.twins))
def test_table_is_complete_and_nothing_spills(op: str) -> None:
    ran = _run("--check", "--only", op)
    assert ran.returncode in (0, 1), ran.stderr
    wrong = [] if ran.returncode == 0 else ran.stdout.splitlines()
    if op in PENDING:
        wrong = [line for line in wrong if not line.endswith("not in the table")]
    assert not wrong, "\n".join(wrong)
