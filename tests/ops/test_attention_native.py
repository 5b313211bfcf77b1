"""The native attention kernels against their float64 definitions: block edges, grids, extremes, refusals.

The generic tests of ops (opcheck, gradcheck, precision, threads) run on the registry's small samples. Here
are the sizes at which the kernels change course: vector, tile, panel and block edges, several query blocks,
several chunks of queries in backward.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import _arguments, _library
from ifdd_kernels.registry import Maker
from ifdd_kernels.testing import thread_count
from ops.backend_checks import check_as_exact_as_reference
from ops.cases import forward_and_backward

pytestmark = pytest.mark.skipif(
    not _library.loaded(), reason=f"native library not loaded: {_library.failure()}"
)

Grid = tuple[int, int, int]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EPS32, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
#: Tokens at the edges of vectors (16), panels of keys (24, 48), query blocks (64) and depth blocks (128).
TOKENS = (1, 2, 15, 16, 17, 47, 48, 49, 63, 64, 65, 127, 128, 129, 196)
CHANNELS = (1, 3, 16, 24, 96, 100)
#: (query grid, key grid): K < Q, K = Q, K > Q, uneven ratios, lines longer than a vector, one key a frame.
GRIDS: tuple[tuple[Grid, Grid], ...] = (
    ((2, 8, 8), (2, 4, 4)),
    ((2, 5, 5), (2, 5, 5)),
    ((2, 3, 3), (2, 6, 6)),
    ((3, 5, 4), (2, 2, 3)),
    ((1, 3, 20), (1, 3, 20)),
    ((4, 4, 4), (4, 1, 1)),
)


def lifting_inputs(dtype: torch.dtype, batch: int, tokens: int, heads: int, d: int) -> tuple[Any, ...]:
    """Arguments of lifting_attention: query contiguous, key and value packed."""
    make = Maker(dtype, seed=tokens * 101 + d)
    query = make.normal(batch, tokens, heads, d)
    return (query, *make.normal(batch, tokens, 2, heads, d).unbind(2), d**-0.5)


def pooled_inputs(
    dtype: torch.dtype, batch: int, heads: int, d: int, grids: tuple[Grid, Grid], scale: float = 1.0
) -> tuple[Any, ...]:
    """Arguments of pooled_attention; ``scale`` multiplies query and tables."""
    make = Maker(dtype, seed=d + sum(grids[0]))
    return _arguments.pooled_attention(make, batch, *grids, heads, d, size=scale).of("pooled_attention")


def grad_of(args: tuple[Any, ...]) -> Tensor:
    """A fixed random gradient of the result."""
    query, generator = args[0], torch.Generator().manual_seed(7)
    values = torch.randn(*query.shape[:2], query.shape[2] * query.shape[3], generator=generator)
    return values.to(query.dtype)


def run(op: str, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Result, log-sum and all gradients from the registered ops."""
    return forward_and_backward(op, args, [grad_of(args)])


def check(op: str, args: tuple[Any, ...], factor: float = 1.0) -> None:
    """As exact as the reference; ``factor`` is for the bits of a score before the decimal point, which its
    exponential multiplies.
    """
    # In float64 "exact" is the reference itself, whose own error counts as none.
    unit = 64 * EPS64 if args[0].dtype == torch.float64 else 16 * EPS32

    def allowed(dtype: torch.dtype) -> float:
        return factor * unit + torch.finfo(dtype).eps

    # A single key has probability 1, so that its gradient vanishes.
    check_as_exact_as_reference(
        op, args, [grad_of(args)], allowed, eager_factor=3, gradient_factor=1, vanishing=1e-3
    )


@pytest.mark.instruction_sets
@pytest.mark.parametrize("tokens", TOKENS)
def test_lifting_at_block_edges(tokens: int) -> None:
    check("lifting_attention", lifting_inputs(torch.float32, 2, tokens, 2, 24))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", CHANNELS)
def test_lifting_head_dimensions(dtype: torch.dtype, d: int) -> None:
    check("lifting_attention", lifting_inputs(dtype, 1, 70, 2, d))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", CHANNELS)
def test_pooled_head_dimensions(dtype: torch.dtype, d: int) -> None:
    check("pooled_attention", pooled_inputs(dtype, 2, 2, d, GRIDS[0]))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_pooled_grids(grids: tuple[Grid, Grid], dtype: torch.dtype) -> None:
    check("pooled_attention", pooled_inputs(dtype, 2, 3, 16, grids))


def test_several_chunks_of_queries() -> None:
    """More queries than a chunk of backward (512 for small heads), with rows left over; 16-bit sums too."""
    for dtype in (torch.float32, torch.bfloat16):
        check("pooled_attention", pooled_inputs(dtype, 2, 2, 8, ((3, 20, 21), (3, 3, 4))))
        check("lifting_attention", lifting_inputs(dtype, 1, 1100, 1, 8))


def test_many_keys_shrink_the_query_block() -> None:
    check("lifting_attention", lifting_inputs(torch.float32, 1, 2100, 1, 16))
    # More keys than 8 rows of scores leave room for.
    check("pooled_attention", pooled_inputs(torch.float32, 1, 1, 4, ((1, 3, 3), (9, 31, 32))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores of hundreds: their exponentials overflow unless the largest is taken off first."""
    args = pooled_inputs(dtype, 1, 2, 16, GRIDS[1], scale=100.0 if dtype != torch.float16 else 30.0)
    # A score of 1000 carries 1000 ulps into its exponential, in any order of the sums.
    check("pooled_attention", args, factor=500)


def test_one_key_takes_all() -> None:
    query, key, value, scale = lifting_inputs(torch.float32, 3, 1, 2, 5)
    out, log_sum = torch.ops.ifdd.lifting_attention(query, key, value, scale)
    torch.testing.assert_close(out, 2 * value.flatten(2))
    torch.testing.assert_close(log_sum[..., 0], (query * key).sum(-1)[:, 0] * scale)


def test_infinitely_small_scores_have_no_weight() -> None:
    """exp(-inf) is 0, not a denormal or NaN: the masked keys' values do not matter."""
    query, key, value, scale = lifting_inputs(torch.float32, 1, 40, 1, 8)
    query = query.abs()
    masked = key.clone()
    masked[:, 20:] = -float("inf")
    out = torch.ops.ifdd.lifting_attention(query, masked, value, scale)[0] - value.flatten(2)
    expected = torch.softmax(query[0, :, 0] @ key[0, :20, 0].T * scale, -1) @ value[0, :20, 0]
    torch.testing.assert_close(out[0], expected, rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_row() -> None:
    query, key, value, scale = lifting_inputs(torch.float32, 1, 33, 1, 8)
    query[0, 7, 0, 3] = float("nan")
    out, log_sum = torch.ops.ifdd.lifting_attention(query, key, value, scale)
    rows = out[0].isnan().any(-1)
    assert rows[7]
    assert rows.sum() == 1
    assert log_sum[0, 0].isnan().nonzero().tolist() == [[7]]


def test_strided_tokens_are_read_in_place() -> None:
    """Heads and tokens in any order of memory, a broadcast batch, and a last axis that is not dense."""
    query, key, value, scale = lifting_inputs(torch.float32, 2, 19, 3, 6)
    wanted = run("lifting_attention", (query, key, value, scale))
    layouts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
        lambda t: t.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        lambda t: torch.cat((t, t), 3)[..., : t.shape[3]],
    )
    for layout in layouts:
        got = run("lifting_attention", (layout(query), layout(key), layout(value), scale))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    shared = query[:1].expand(2, -1, -1, -1)
    got = run("lifting_attention", (shared, key, value, scale))
    wanted = run("lifting_attention", (shared.contiguous(), key, value, scale))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_bits_do_not_depend_on_threads() -> None:
    """Several chunks, heads and clips, so that every sum across tasks has more than one term."""
    args = pooled_inputs(torch.float32, 2, 2, 16, ((2, 24, 25), (2, 6, 5)))
    results = []
    for threads in (1, 2, 3, 5):
        with thread_count(threads):
            results.append(run("pooled_attention", args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


MEMORY = """
import sys, torch
import ifdd_kernels
torch.set_num_threads(1)
torch.manual_seed(0)
q, k, v = torch.randn(1, 1 + 4096, 4, 8), torch.randn(1, 1 + 1024, 4, 8), torch.randn(1, 1 + 1024, 4, 8)
grids = [4, 32, 32], [4, 16, 16]
tables = [torch.randn(n, 8) for n in (63, 63, 7)]
def step():
    out, log_sum = torch.ops.ifdd.pooled_attention(q, k, v, *tables, *grids, 0.3)
    torch.ops.ifdd.pooled_attention_backward(out, q, k, v, *tables, out, log_sum, *grids, 0.3)
def resident(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field))
# A small call loads all code; then the high-water mark of resident memory is set back to what is in use.
small = [t[:, :9] for t in (q, k, v)], [t[:3] for t in tables]
torch.ops.ifdd.pooled_attention(*small[0], *small[1], [2, 2, 2], [2, 2, 2], 0.3)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
step()
print((resident("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from /proc")
def test_peak_memory() -> None:
    """A tenth of the three matrices that eager training holds: scores, probabilities and a gradient."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run_ = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True)
    assert run_.returncode == 0, run_.stderr
    matrix = 4 * 4 * (1 + 4096) * (1 + 1024)
    assert 0 < int(run_.stdout) <= 3 * matrix / 10


Q = torch.randn(1, 9, 2, 3)
TABLES = [torch.randn(3, 3) for _ in range(3)]
GRID = [2, 2, 2]
OUT, LOG_SUM = torch.randn(1, 9, 6), torch.randn(1, 2, 9)
LIFT = torch.ops.ifdd.lifting_attention
LIFT_BACK = torch.ops.ifdd.lifting_attention_backward
POOL = torch.ops.ifdd.pooled_attention
POOL_BACK = torch.ops.ifdd.pooled_attention_backward
ERRORS: tuple[tuple[str, Callable[[], Any]], ...] = (
    (r"ifdd::lifting_attention: query: expected shape \(-1, -1, -1, -1\)", lambda: LIFT(Q[0], Q, Q, 1.0)),
    (r"lifting_attention: query: expected at least one channel", lambda: LIFT(*[Q[..., :0]] * 3, 1.0)),
    (r"lifting_attention: query: expected dtype .* got int64", lambda: LIFT(*[Q.long()] * 3, 1.0)),
    (r"lifting_attention: key: expected shape \(1, 9, 2, 3\).* got \(1, 8, 2, 3\)",
     lambda: LIFT(Q, Q[:, 1:], Q, 1.0)),
    (r"lifting_attention: value: expected dtype float32, got float64", lambda: LIFT(Q, Q, Q.double(), 1.0)),
    (r"lifting_attention_backward: grad_out: expected shape \(1, 9, 6\)",
     lambda: LIFT_BACK(OUT[..., 1:], Q, Q, Q, OUT, LOG_SUM, 1.0)),
    (r"lifting_attention_backward: out: expected shape \(1, 9, 6\)",
     lambda: LIFT_BACK(OUT, Q, Q, Q, OUT[:, 1:], LOG_SUM, 1.0)),
    (r"lifting_attention_backward: log_sum: expected dtype float32",
     lambda: LIFT_BACK(OUT, Q, Q, Q, OUT, LOG_SUM.double(), 1.0)),
    (r"ifdd::pooled_attention: q_grid: expected three positive integers .* got \(2, 0, 2\)",
     lambda: POOL(Q, Q, Q, *TABLES, [2, 0, 2], GRID, 1.0)),
    (r"pooled_attention: k_grid: expected three positive integers .* got \(2, 2\)",
     lambda: POOL(Q, Q, Q, *TABLES, GRID, [2, 2], 1.0)),
    (r"pooled_attention: query: expected shape \(1, 13, 2, 3\)",
     lambda: POOL(Q, Q, Q, *TABLES, [2, 2, 3], GRID, 1.0)),
    (r"pooled_attention: key: expected shape \(1, 9, 2, 3\)",
     lambda: POOL(Q, Q[:, :, :1], Q, *TABLES, GRID, GRID, 1.0)),
    (r"pooled_attention: table_w: expected shape \(3, 3\)",
     lambda: POOL(Q, Q, Q, TABLES[0], TABLES[1][1:], TABLES[2], GRID, GRID, 1.0)),
    (r"pooled_attention: table_h: expected dtype float32, got float64",
     lambda: POOL(Q, Q, Q, TABLES[0].double(), *TABLES[1:], GRID, GRID, 1.0)),
    (r"pooled_attention_backward: log_sum: expected shape \(1, 2, 9\)",
     lambda: POOL_BACK(OUT, Q, Q, Q, *TABLES, OUT, LOG_SUM[:, :1], GRID, GRID, 1.0)),
)  # fmt: skip


@pytest.mark.parametrize(("message", "call"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_direct_calls_are_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()


def test_empty_batch_has_zero_table_gradients() -> None:
    args = pooled_inputs(torch.float32, 0, 2, 4, GRIDS[1])
    for grad in run("pooled_attention", args)[5:]:
        assert torch.equal(grad, torch.zeros_like(grad))
