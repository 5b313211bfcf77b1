"""Attention in bfloat16 on matrix tiles (AMX): the CPU's where it has some, and their stand-in on every CPU.

A process decides once, so the tests run as they are, by whatever this machine uses, and once more in
processes with ``IFDD_CPU_TILES=emulated``: there packing, padding and addresses are the code that AMX
machines run, and only the instructions are plain C++.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ifdd_kernels
from ifdd_kernels import _library
from ifdd_kernels.testing import thread_count
from ops.cases import nightly
from ops.test_attention_native import GRIDS, Grid, check, lifting_inputs, pooled_inputs, run
from ops.test_instruction_sets import lower

pytestmark = pytest.mark.skipif(
    not _library.loaded(), reason=f"native library not loaded: {_library.failure()}"
)

TESTS = Path(__file__).parents[1]
BF16 = torch.bfloat16
STATE = str(ifdd_kernels.build_info().get("matrix_tiles", ""))
first_process = pytest.mark.skipif("IFDD_CPU_TILES" in os.environ, reason="IFDD_CPU_TILES is already set")
#: At the edges of tiles (16), of squares of them and of blocks of terms (32); several blocks of queries.
TOKENS = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 196, 700)


@first_process
@pytest.mark.slow
@pytest.mark.parametrize("isa", [None, *(nightly(name, id=name) for name in lower())])
def test_with_emulated_tiles(isa: str | None) -> None:
    """This file again; without a name, on the best instruction set."""
    environment = {**os.environ, "IFDD_CPU_TILES": "emulated", **({"IFDD_CPU_ISA": isa} if isa else {})}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 50


def test_what_is_asked_for_is_used() -> None:
    if os.environ.get("IFDD_CPU_TILES") == "emulated":
        assert STATE.startswith("emulated")
    elif os.environ.get("IFDD_CPU_TILES") == "off" or os.environ.get("IFDD_CPU_ISA"):
        assert STATE.startswith("off")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("d", [24, 33])
def test_lifting_at_the_edges_of_matrix_tiles(tokens: int, d: int) -> None:
    check("lifting_attention", lifting_inputs(BF16, 2, tokens, 2, d))


#: Sums over tiles are added to the bias; numbers of queries and keys as above.
EDGES: tuple[tuple[Grid, Grid], ...] = (
    *(GRIDS[0], GRIDS[3], GRIDS[5]),
    ((1, 3, 5), (1, 2, 7)),
    ((2, 4, 4), (1, 5, 6)),
    ((1, 7, 9), (3, 3, 7)),
    ((3, 15, 15), (2, 8, 8)),
)


@pytest.mark.parametrize("grids", EDGES, ids=str)
@pytest.mark.parametrize("d", [16, 33, 96])
def test_pooled_at_the_edges_of_matrix_tiles(grids: tuple[Grid, Grid], d: int) -> None:
    check("pooled_attention", pooled_inputs(BF16, 2, 2, d, grids))


def test_many_keys_and_few_rows_of_scores() -> None:
    """Blocks of 24 and of 8 queries, fewer than a square of tiles."""
    check("lifting_attention", lifting_inputs(BF16, 1, 2100, 1, 16))
    check("pooled_attention", pooled_inputs(BF16, 1, 1, 4, ((1, 3, 3), (9, 31, 32))))


def test_bits_do_not_depend_on_threads() -> None:
    """One thread packs a head once, several pack it each for itself."""
    calls = {
        "pooled_attention": pooled_inputs(BF16, 2, 2, 24, ((2, 24, 25), (2, 6, 5))),
        "lifting_attention": lifting_inputs(BF16, 3, 300, 2, 33),
    }
    for op, args in calls.items():
        results = []
        for threads in (1, 2, 3):
            with thread_count(threads):
                results.append(run(op, args))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_bits_do_not_depend_on_strides() -> None:
    query, key, value, scale = lifting_inputs(BF16, 2, 37, 3, 20)
    wanted = run("lifting_attention", (query, key, value, scale))
    apart = [t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for t in (query, key, value)]
    assert all(
        torch.equal(a, b) for a, b in zip(run("lifting_attention", (*apart, scale)), wanted, strict=True)
    )


def test_nan_stays_in_its_row() -> None:
    query, key, value, scale = lifting_inputs(BF16, 1, 33, 1, 40)
    query[0, 7, 0, 3] = float("nan")
    out, log_sum = torch.ops.ifdd.lifting_attention(query, key, value, scale)
    assert out[0].isnan().any(-1).nonzero().flatten().tolist() == [7]
    assert log_sum[0, 0].isnan().nonzero().flatten().tolist() == [7]


def test_an_infinite_value_stays_in_its_channel() -> None:
    """Weights of rows that are padding are zeros, and zero times infinity is not a number."""
    query, key, value, scale = lifting_inputs(BF16, 1, 33, 1, 40)
    value = value.contiguous()
    value[0, 0, 0, 3] = float("inf")
    out = torch.ops.ifdd.lifting_attention(query, key, value, scale)[0][0]
    assert (out[:, 3] == float("inf")).all()
    assert out.isfinite().sum() == out.numel() - len(out)


def scores(query: Tensor, key: Tensor) -> Tensor:
    """q.k of pairs (pairs, d), bit for bit: with a single key the logarithm of the sum is its score."""
    one = query[:, None, None].contiguous(), key[:, None, None].contiguous()
    found: Tensor = torch.ops.ifdd.lifting_attention(*one, one[1], 1.0)[1].flatten()
    return found


def in_order(a: Tensor, b: Tensor) -> Tensor:
    """Sums of products (pairs, d) in the order of Intel's manual: blocks of 32, even and odd terms apart."""
    x, y = (torch.nn.functional.pad(t.float(), (0, -t.shape[1] % 32)).numpy() for t in (a, b))
    terms = (x * y).reshape(len(x), -1, 16, 2)  # exact
    sums = np.zeros(len(x), np.float32)
    for block in terms.swapaxes(0, 1):
        chains = np.zeros((len(x), 2), np.float32)
        for pair in block.swapaxes(0, 1):
            chains += pair
        sums += chains[:, 0] + chains[:, 1]
    return torch.from_numpy(sums)


@pytest.mark.skipif(not STATE.startswith("emulated"), reason=f"of emulated tiles, which are {STATE}")
@pytest.mark.parametrize("d", [1, 2, 31, 32, 33, 96, 100])
def test_order_of_sums(d: int) -> None:
    """Bit for bit; the CPU's tiles, which take no single keys, are compared with emulated ones below."""
    generator = torch.Generator().manual_seed(d)
    query, key = (torch.randn(200, d, generator=generator).to(BF16) for _ in range(2))
    wanted = in_order(query, key)
    assert d <= 2 or not torch.equal((query.float() * key.float()).sum(1), wanted)
    assert torch.equal(scores(query, key), wanted)


def alike(number: float) -> Tensor:
    """64 tokens with the number in their first channel of 32."""
    tokens = torch.zeros(1, 64, 1, 32)
    tokens[..., 0] = number
    return tokens.to(BF16)


@pytest.mark.skipif(STATE.startswith("off"), reason=f"matrix tiles are {STATE}")
def test_subnormal_numbers_are_zeros() -> None:
    """As factors, and as sums; without tiles the scores below are 1, and the output is twice the value."""
    tiny = 2.0**-127
    assert alike(tiny).max() > 0

    def score(query: float, key: float, scale: float) -> float:
        found = torch.ops.ifdd.lifting_attention(alike(query), alike(key), alike(0), scale)[1]
        return round(float(found.max()) - math.log(64), 5)

    assert score(1, 2 * tiny, 2.0**126) == 1
    assert score(1, tiny, 2.0**127) == 0
    assert score(tiny, 1, 2.0**127) == 0
    assert score(2.0**-63, 2.0**-63, 2.0**126) == 1
    assert score(2.0**-63, 2.0**-64, 2.0**127) == 0

    one, value = alike(1), alike(tiny)
    out, log_sum = torch.ops.ifdd.lifting_attention(one, one, value, 1.0)
    assert out[..., 0].unique().tolist() == [tiny]
    # The gradient of the value is that of out, by the weights, whose sum is 1, and by the residual.
    for grad, times in ((tiny, 1), (1.0, 2)):
        back = torch.ops.ifdd.lifting_attention_backward(
            alike(grad).flatten(2), one, one, value, out, log_sum, 1.0
        )
        assert back[2][..., 0].unique().tolist() == [times * grad]


COMPARED = """
import sys, torch
from ops.test_matrix_tiles import STATE, compared
torch.save((STATE, compared()), sys.argv[1])
"""


def compared() -> list[Tensor]:
    """Results, log-sums and gradients of both ops."""
    lifted = [lifting_inputs(BF16, 2, tokens, 2, d) for tokens in TOKENS for d in (24, 96)]
    pooled = [pooled_inputs(BF16, 2, 2, 96, grids) for grids in EDGES]
    results = [run("lifting_attention", args) for args in lifted]
    results += [run("pooled_attention", args) for args in pooled]
    return [t for result in results for t in result]


@first_process
@pytest.mark.skipif(
    STATE != "used", reason=f"compares the CPU's matrix tiles with emulated ones; they are {STATE}"
)
def test_emulated_tiles_compute_what_the_cpu_computes(tmp_path: Path) -> None:
    """log_sum within the rounding of 96 terms, the others within an ulp of bfloat16 of their largest: what
    another order of the same sums may change. By Intel's manual the bits are the same.
    """
    path = tmp_path / "emulated.pt"
    environment = {
        **os.environ,
        "IFDD_CPU_TILES": "emulated",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPARED, str(path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    state, emulated = torch.load(path)
    assert state.startswith("emulated")
    for own, other in zip(compared(), emulated, strict=True):
        unit = 96 * torch.finfo(torch.float32).eps if own.dtype == torch.float32 else torch.finfo(BF16).eps
        assert (own.double() - other.double()).abs().max() <= unit * other.double().abs().max()
