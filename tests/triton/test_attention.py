"""``pooled_attention`` and ``lifting_attention`` in Triton beyond the registry's samples (test_samples.py).

Sizes at which the kernels change course: head dimensions of one and two tiles, keys at the edges of full and
masked tiles, several chunks of queries, both directions of unequal grids, shapes like the network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import _arguments
from ifdd_kernels.grids import table_length
from ifdd_kernels.registry import REGISTRY, Maker, Sample
from ifdd_kernels.triton import interpreted
from ops.backend_checks import check_backend, check_call
from ops.cases import forward_and_backward, nightly

_attention = pytest.importorskip("ifdd_kernels.triton._attention", reason="Triton is not installed")
pooled_attention = pytest.importorskip("ifdd_kernels.triton.pooled_attention")

DEVICE = "cpu" if interpreted() else "cuda"
Grid = tuple[int, int, int]
LIFTING = torch.ops.ifdd.lifting_attention_triton
LIFTING_BACKWARD = torch.ops.ifdd.lifting_attention_backward_triton
POOLED = torch.ops.ifdd.pooled_attention_triton


def lifting(dtype: torch.dtype, batch: int, tokens: int, heads: int, d: int) -> Sample:
    make = Maker(dtype, DEVICE, seed=tokens * 101 + d)
    return Sample("", _arguments.lifting_attention(make, batch, tokens, heads, d).of("lifting_attention"))


def pooled(
    dtype: torch.dtype, batch: int, heads: int, d: int, q_grid: Grid, k_grid: Grid, size: float = 1.0
) -> Sample:
    """``size`` multiplies query and tables."""
    make = Maker(dtype, DEVICE, seed=d + sum(q_grid))
    arguments = _arguments.pooled_attention(make, batch, q_grid, k_grid, heads, d, size=size)
    return Sample("", arguments.of("pooled_attention"))


@pytest.mark.parametrize("d", [1, 16, nightly(40), 96, nightly(100), nightly(256)])
def test_lifting_head_dimensions(d: int) -> None:
    check_backend(REGISTRY["lifting_attention"], lifting(torch.float32, 1, 20, 2, d))


@pytest.mark.parametrize("tokens", [2, nightly(15), 16, 17, nightly(64), 65, nightly(130)])
def test_lifting_at_tile_edges(tokens: int) -> None:
    check_backend(REGISTRY["lifting_attention"], lifting(torch.float32, 2, tokens, 1, 8))


@pytest.mark.parametrize("dtype", [nightly(torch.float32), nightly(torch.float16), torch.bfloat16], ids=str)
def test_lifting_like_the_network(dtype: torch.dtype) -> None:
    check_backend(REGISTRY["lifting_attention"], lifting(dtype, 1, 196, 2, 96))


@pytest.mark.parametrize(
    ("dtype", "q_grid", "k_grid"),
    [
        nightly(torch.bfloat16, (8, 7, 7), (8, 7, 7)),
        nightly(torch.float32, (2, 7, 7), (2, 14, 14)),
        (torch.float16, (2, 8, 8), (2, 4, 4)),
    ],
    ids=str,
)
def test_pooled_like_the_network(dtype: torch.dtype, q_grid: Grid, k_grid: Grid) -> None:
    check_backend(REGISTRY["pooled_attention"], pooled(dtype, 1, 1, 96, q_grid, k_grid))


@pytest.mark.parametrize(
    ("q_grid", "k_grid"),
    [
        ((3, 5, 4), (2, 2, 3)),
        ((1, 2, 2), (1, 20, 17)),  # 38 coordinates of a key: two tiles
        nightly((40, 1, 2), (40, 1, 1)),  # a table of time of several tiles
        ((1, 1, 1), (1, 1, 1)),
    ],
    ids=str,
)
def test_pooled_grids(q_grid: Grid, k_grid: Grid) -> None:
    check_backend(REGISTRY["pooled_attention"], pooled(torch.float32, 2, 2, 5, q_grid, k_grid))


@pytest.mark.parametrize("d", [3, 96, 130])
def test_pooled_head_dimensions(d: int) -> None:
    check_backend(REGISTRY["pooled_attention"], pooled(torch.float32, 1, 2, d, (2, 3, 2), (2, 2, 2)))


@pytest.mark.parametrize("dtype", [torch.float32, nightly(torch.bfloat16)], ids=str)
def test_several_chunks_of_queries(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Key and value gradients as sums of chunks, the last one ragged; the value residual in its chunk."""
    if interpreted():
        # A tenth of the products; tiles that divide the chunk, as those of a device do.
        monkeypatch.setattr(_attention, "CHUNK", 128)
        tiles = {"BLOCK_Q": 128, "BLOCK_K": 64}
        monkeypatch.setattr(_attention.KEY_GRADIENT, "interpreter", lambda arguments: tiles)
    steps = 20 if interpreted() else 70
    sample = pooled(dtype, 1, 1, 8, (steps, 4, 4), (3, 2, 2))
    assert _attention._query_chunk(1, steps * 16 + 1, 13) < steps * 16 + 1
    check_backend(REGISTRY["pooled_attention"], sample)
    tokens = 16 * steps - 20
    assert _attention._query_chunk(1, tokens, tokens) < tokens
    check_backend(REGISTRY["lifting_attention"], lifting(dtype, 1, tokens, 1, 8))


def test_several_tiles_of_clips_and_heads() -> None:
    """More (clip, head, t) than a program of the position kernels takes."""
    assert pooled_attention._programs(torch.empty(7, 1, 4, 5), (5, 1, 2)) > 2
    check_backend(REGISTRY["pooled_attention"], pooled(torch.float32, 7, 4, 5, (5, 1, 2), (5, 2, 1)))


@pytest.mark.skipif(not interpreted(), reason="tiles can be chosen in the interpreter")
@pytest.mark.parametrize(("keys", "block"), [nightly(32, 16), (33, 16), nightly(50, 32), nightly(20, 64)])
def test_tails(monkeypatch: pytest.MonkeyPatch, keys: int, block: int) -> None:
    """Full tiles only, a narrow masked tile, one as wide as a full one, no full tile."""

    def tiles(class_key_first: bool) -> Callable[[Any], dict[str, int]]:
        return lambda arguments: {
            "BLOCK_Q": 64, "BLOCK_K": block, "TAIL": _attention._tail(arguments, block, class_key_first)
        }  # fmt: skip

    monkeypatch.setattr(_attention.FORWARD, "interpreter", tiles(True))
    monkeypatch.setattr(_attention.QUERY_GRADIENT, "interpreter", tiles(False))
    check_backend(REGISTRY["lifting_attention"], lifting(torch.float32, 1, keys, 1, 8))
    entry = REGISTRY["pooled_attention"]
    assert entry.operator is not None
    for width in (keys, keys - 1):
        # With one row of keys the gradient of the rows' table is what a sum over all keys leaves of itself.
        # The order of a CPU's additions decides how much: eager's own error is the measure.
        sample = pooled(torch.float32, 2, 1, 16, (1, 2, 3), (1, 1, width))
        check_call(entry, sample, entry.operator.overload("triton"), against_eager=True)


def gradient_errors(op: str, sample: Sample) -> list[float]:
    """|error| / |gradient| of all gradients in the Euclidean norm, against the float64 definition."""
    generator = torch.Generator().manual_seed(7)
    query = sample.args[0]
    grad = torch.randn(*query.shape[:2], query.shape[2] * query.shape[3], generator=generator)
    results = []
    for backend, dtype in (("reference", torch.float64), ("triton", query.dtype)):
        args = [a.double() if isinstance(a, Tensor) and dtype == torch.float64 else a for a in sample.args]
        found = forward_and_backward(op, args, [grad.to(query).to(dtype)], backend)
        results.append(found[2:])
    return [
        float((got.double() - wanted).norm() / wanted.norm()) for wanted, got in zip(*results, strict=True)
    ]


@pytest.mark.parametrize(("op", "of_query"), [("lifting_attention", 3), ("pooled_attention", 1.5)])
def test_rounding_of_the_result_stays_out_of_the_gradients(op: str, of_query: float) -> None:
    """Keys and values with a large common part, where a 16-bit rowsum(dP * P) shows in the gradients.

    Without the correction along the mean key the gradient of q errs by 30 ulps and by 1.8; without the
    exact rowsum the gradient of k errs by 1.5 and by 0.8 instead of 0.3.
    """
    dtype = torch.bfloat16
    if op == "lifting_attention":
        sample = lifting(dtype, 1, 130, 1, 32)
    else:
        sample = pooled(dtype, 1, 1, 32, (4, 5, 5), (4, 5, 5), size=0.7)
    for part in sample.args[1:3]:
        part += 3 * torch.randn(32, generator=torch.Generator().manual_seed(2)).to(part)
    eps = torch.finfo(dtype).eps
    for error, ulps in zip(gradient_errors(op, sample)[:3], (of_query, 0.6, 0.6), strict=True):
        assert error <= ulps * eps


def test_large_scores() -> None:
    """Scores of hundreds: their exponentials overflow unless the largest is taken off first."""
    query, key, value, *rest = pooled(torch.float32, 1, 2, 16, (2, 3, 3), (2, 3, 3), size=60.0).args
    out, log_sum = POOLED(query, key, value, *rest)
    wide = [arg.double() if isinstance(arg, Tensor) else arg for arg in (query, key, value, *rest)]
    exact, exact_log_sum = torch.ops.ifdd.pooled_attention_reference(*wide)
    assert exact_log_sum.max() > 200
    # A score of 1000 carries 1000 ulps into its exponential.
    bound = 2000 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert float((out.double() - exact).abs().max()) <= bound
    assert float((log_sum.double() - exact_log_sum).abs().max()) <= bound


def test_infinitely_small_scores_have_no_weight() -> None:
    """Masked keys count nothing, in a tile of their own or not, at either end; the class key too."""
    query, key, value, scale = lifting(torch.float32, 1, 70, 1, 8).args
    query = query.abs()
    for hidden in (slice(0, 40), slice(30, 70)):
        masked = key.clone()
        masked[:, hidden] = -float("inf")
        seen = torch.ones(70, dtype=torch.bool, device=DEVICE)
        seen[hidden] = False
        out = LIFTING(query, masked, value, scale)[0] - value.flatten(2)
        weights = torch.softmax(query[0, :, 0] @ key[0, seen, 0].T * scale, -1)
        torch.testing.assert_close(out[0], weights @ value[0, seen, 0], rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_row() -> None:
    query, key, value, scale = lifting(torch.float32, 1, 33, 1, 8).args
    query[0, 7, 0, 3] = float("nan")
    out, log_sum = LIFTING(query, key, value, scale)
    assert out[0].isnan().any(-1).nonzero().tolist() == [[7]]
    assert log_sum[0, 0].isnan().nonzero().tolist() == [[7]]


def test_strided_tokens_are_read_in_place() -> None:
    """Heads and tokens in any order of memory, a broadcast batch, and a last axis that is not dense."""
    query, key, value, scale = lifting(torch.float32, 2, 9, 2, 6).args
    wanted = LIFTING(query, key, value, scale)[0]
    layouts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
        lambda t: t.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        lambda t: torch.cat((t, t), 3)[..., : t.shape[3]],
    )
    for layout in layouts:
        assert torch.equal(LIFTING(layout(query), layout(key), layout(value), scale)[0], wanted)
    out, log_sum = LIFTING(query, key, value, scale)
    dense = LIFTING_BACKWARD(out, query, key, value, out, log_sum, scale)
    spread = layouts[0]
    for parts in ((spread(query), key, value), (query, spread(key), value), (query, key, spread(value))):
        assert torch.equal(LIFTING(*parts, scale)[0], wanted)
        grads = LIFTING_BACKWARD(out, *parts, out, log_sum, scale)
        assert all(torch.equal(a, b) for a, b in zip(grads, dense, strict=True))
    shared = query[:1].expand(2, -1, -1, -1)
    got = LIFTING(shared, key, value, scale)[0]
    assert torch.equal(got, LIFTING(shared.contiguous(), key, value, scale)[0])


def test_empty_batch_has_zero_table_gradients() -> None:
    query, key, value, *rest = pooled(torch.float32, 0, 2, 4, (2, 2, 2), (2, 2, 2)).args
    leaves = [table.requires_grad_() for table in rest[:3]]
    out = POOLED(query.requires_grad_(), key, value, *leaves, *rest[3:])[0]
    for grad in torch.autograd.grad(out.sum(), leaves):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_no_matrix_of_queries_and_keys_in_memory() -> None:
    """All memory of forward and backward of the first block, B = 16, beside inputs and results."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ifdd_kernels.triton._runtime import captured_launches

    q_grid, k_grid, d = (8, 56, 56), (8, 7, 7), 96
    queries, keys = 1 + math.prod(q_grid), 1 + math.prod(k_grid)
    with FakeTensorMode(), captured_launches() as launches:
        query = torch.empty(16, queries, 1, d, dtype=torch.bfloat16)
        key = torch.empty(16, keys, 1, d, dtype=torch.bfloat16)
        tables = [torch.empty(table_length(q_grid[axis], k_grid[axis]), d) for axis in (1, 2, 0)]
        out, log_sum = pooled_attention.forward(query, key, key, *tables, q_grid, k_grid, 0.1)
        pooled_attention.backward(out, query, key, key, *tables, out, log_sum, q_grid, k_grid, 0.1)
    tensors = {
        id(value): value
        for launch in launches
        for value in launch.arguments.values()
        if isinstance(value, Tensor)
    }
    assert {launch.kernel.name for launch in launches} >= {
        "attention_forward",
        "sum_chunks",
        "table_gradient",
    }
    largest = max(tensor.numel() for tensor in tensors.values())
    assert largest == query.numel() < 16 * queries * keys / 4
    # Query, result, cotangent and two gradients of q are five of these; a 16-bit matrix would be four more.
    assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 7 * query.numel() * 2
