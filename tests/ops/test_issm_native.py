"""Native kernels of the splitting module, residual and loss where the registry's samples do not reach.

Ragged pools and grids, many widths of tokens and channels, long clips, ties, values that are not finite and
direct calls of the registered ops. Bounds are those of the registry: ulps of float32 for results (their
dtype whatever that of x), four times as many for gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ifdd_kernels import _library, reference
from ifdd_kernels.registry import REGISTRY, Sample
from ifdd_kernels.testing import thread_count
from ops.backend_checks import check_precision
from ops.cases import forward_and_backward

OPS = (
    "frame_tokens",
    "frame_correlation",
    "split_index",
    "topk_split_index",
    "lifting_residual",
    "lifting_loss",
)
pytestmark = pytest.mark.skipif(
    not _library.loaded(), reason=f"native library not loaded: {_library.failure()}"
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: Grid and pooled side: identity, dividing, ragged, larger than the grid in one axis or both, one cell.
POOLS = (((7, 7), 7), ((14, 14), 7), ((9, 5), 4), ((2, 3), 7), ((5, 9), 7), ((3, 4), 1), ((1, 1), 3))


class Random:
    """Seeded normal tensors of one dtype; parameters in float32 beside 16 bits."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * scale
        return values.to(dtype or self.dtype)

    def parameter(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self(*shape, scale=scale, dtype=self.wide)


def check(name: str, args: tuple[Any, ...]) -> None:
    """Values and gradients of a native op against PyTorch's derivative of its definition in float64."""
    operator = REGISTRY[name].operator
    assert operator is not None
    check_precision(REGISTRY[name], Sample("", args), operator.overload(), seed=1)


def tokenizer(random: Random, rows: int, channels: int) -> tuple[Tensor, Tensor]:
    return random.parameter(rows, channels, scale=channels**-0.5), random.parameter(rows)


def test_the_ops_have_native_kernels() -> None:
    native = _library.native_ops("cpu")
    assert set(OPS) <= native
    assert {f"{name}_backward" for name in OPS if name != "topk_split_index"} <= native


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "pool"), POOLS, ids=str)
def test_frame_tokens_on_ragged_grids(dtype: torch.dtype, grid: tuple[int, int], pool: int) -> None:
    random = Random(dtype, pool)
    x = random(2, 3, grid[0] * grid[1], 24)
    check("frame_tokens", (x, *tokenizer(random, 7, 24), *grid, pool))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("channels", [1, 5, 24, 96, 100, 768])
@pytest.mark.parametrize("rows", [1, 3, 7, 8, 17])
def test_frame_tokens_of_any_width(rows: int, channels: int) -> None:
    for dtype in (torch.float32, torch.float16):
        random = Random(dtype, rows)
        x = random(1, 2, 6, channels)
        check("frame_tokens", (x, *tokenizer(random, rows, channels), 2, 3, 2))


def test_frames_with_strides_are_read_in_place() -> None:
    """Frames cut out of longer rows (a class token before them): the values of the copy, bit for bit."""
    random = Random(torch.float32, 3)
    x = random(2, 1 + 4 * 9, 20)[:, 1:].unflatten(1, (4, 9))
    assert not x.is_contiguous()
    args = (*tokenizer(random, 5, 20), 3, 3, 2)
    assert torch.equal(torch.ops.ifdd.frame_tokens(x, *args), torch.ops.ifdd.frame_tokens(x.clone(), *args))
    check("frame_tokens", (x, *args))
    check("lifting_residual", (x, x[:, ::2]))


@pytest.mark.instruction_sets
def test_activation_is_the_exact_gelu() -> None:
    """Every size of argument, both tails, through a tokenizer of one channel and weight one."""
    x = torch.cat([torch.linspace(-14, 14, 8001), torch.logspace(-30, 1, 400), -torch.logspace(-30, 1, 400)])
    one, zero = torch.ones(1, 1), torch.zeros(1)
    got = torch.ops.ifdd.frame_tokens(x.view(1, -1, 1, 1), one, zero, 1, 1, 1).flatten()
    wide = x.double()
    exact = wide * 0.5 * torch.special.erfc(-wide * 0.5**0.5)
    # A few ulps of the value itself; in the tail those of x^2 / 2 in the exponent.
    bound = torch.finfo(torch.float32).eps * (4 + wide.square()) * exact.abs() + 1e-37
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("frames", [2, 8, 30, 128])
def test_split_index_of_any_length(frames: int) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        random = Random(dtype, frames)
        x = random(2, frames, 6, 17)
        offsets = [random.parameter(frames // 2, frames**2, scale=1 / frames) for _ in range(2)]
        check("split_index", (x, *tokenizer(random, 3, 17), *offsets, 2, 3, 2, 2.0))


@pytest.mark.instruction_sets
@pytest.mark.parametrize(("grid", "pool"), POOLS[1:], ids=str)
def test_split_index_on_ragged_grids(grid: tuple[int, int], pool: int) -> None:
    random = Random(torch.float32, pool)
    x = random(3, 4, grid[0] * grid[1], 33)
    offsets = [random.parameter(2, 16, scale=0.5) for _ in range(2)]
    check("split_index", (x, *tokenizer(random, 7, 33), *offsets, *grid, pool, 1.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correlation_of_many_frames(dtype: torch.dtype) -> None:
    check("frame_correlation", (Random(dtype, 1)(2, 128, 70), 1 / 70))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("frames", [2, 8, 30, 128])
@pytest.mark.parametrize("prior", [False, True])
def test_topk_is_the_exact_order(dtype: torch.dtype, frames: int, prior: bool) -> None:
    for grid, pool in POOLS:
        x = Random(dtype, frames)(2, frames, grid[0] * grid[1], 20)
        # Scores far enough apart for the order to be the same in any precision.
        x = x + torch.randperm(frames).to(dtype).view(1, frames, 1, 1) / frames
        static, dynamic = torch.ops.ifdd.topk_split_index(x, *grid, pool, prior)
        exact = reference.topk_split_index(x.double(), *grid, pool, prior)
        both = torch.cat([static, dynamic], 1).sort(1).values
        assert torch.equal(both, torch.arange(frames).expand(2, frames))
        assert torch.equal(static, exact[0])
        assert torch.equal(dynamic, exact[1])


def test_topk_ranks_equal_frames_by_time() -> None:
    frame = torch.randn(1, 1, 6, 50)
    x = frame * torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0]).view(1, 8, 1, 1)
    for pool in (2, 3):
        static, dynamic = torch.ops.ifdd.topk_split_index(x, 2, 3, pool, False)
        assert static.tolist() == [[0, 1, 3, 6]]
        assert dynamic.tolist() == [[2, 4, 5, 7]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_still_split_all_frames(value: float) -> None:
    x = Random(torch.float32, 5)(3, 8, 4, 6)
    # Two infinities: the scores of the other frames are infinite or NaN.
    x[0, 3, 0, :2] = value
    x[1] = value
    static, dynamic = torch.ops.ifdd.topk_split_index(x, 2, 2, 2, False)
    both = torch.cat([static, dynamic], 1).sort(1).values
    assert torch.equal(both, torch.arange(8).expand(3, 8))
    assert torch.equal(static[2:], torch.ops.ifdd.topk_split_index(x[2:], 2, 2, 2, False)[0])
    exact = reference.topk_split_index(x.double(), 2, 2, 2, False)
    assert torch.equal(static, exact[0])
    assert torch.equal(dynamic, exact[1])


def test_a_clip_that_is_not_finite_stays_alone() -> None:
    random = Random(torch.float32, 2)
    args = (*tokenizer(random, 3, 6), random(4, 64), random(4, 64), 2, 2, 2, 2.0)
    x = random(2, 8, 4, 6)
    clean = torch.ops.ifdd.split_index(x, *args)
    x[0, 2, 1, 3] = float("nan")
    for got, wanted in zip(torch.ops.ifdd.split_index(x, *args), clean, strict=True):
        assert got[0].isnan().any()
        assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 128, 5, 100), (1, 7, 3, 768)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    random = Random(dtype, shape[1])
    check("lifting_residual", (random(*shape), random(shape[0], 3, *shape[2:])))
    if dtype == torch.bfloat16:
        check("lifting_residual", (random(*shape), random(shape[0], 3, *shape[2:], dtype=torch.float32)))


@pytest.mark.instruction_sets
@pytest.mark.parametrize("shape", [(5, 2), (1, 70_000), (3, 31, 1, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_in_chunks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for beta, mean in ((1.0, False), (0.3, True)):
        check("lifting_loss", (Random(dtype, 3)(*shape, scale=2.0), 0.1, beta, mean))


def test_losses_of_nothing() -> None:
    loss = torch.ops.ifdd.lifting_loss
    assert loss(torch.randn(0, 3), 1.0, 1.0, False) == 0
    assert loss(torch.randn(0, 3), 1.0, 1.0, True).isnan()
    assert loss(torch.randn(2, 0), 1.0, 1.0, False).isnan()
    assert torch.ops.ifdd.lifting_loss_backward(torch.ones(()), torch.randn(2, 0), 1.0, 1.0, False).shape == (
        2,
        0,
    )


def _many_chunks() -> tuple[Any, ...]:
    """150 frames: more than the 64 partial sums of the weight gradient."""
    random = Random(torch.float32, 9)
    return random(25, 6, 9, 70), *tokenizer(random, 5, 70), random(3, 36), random(3, 36), 3, 3, 2, 2.0


def test_bits_do_not_depend_on_threads() -> None:
    args = _many_chunks()
    cotangents = [torch.randn_like(o) for o in torch.ops.ifdd.split_index(*args)]
    x, residual_args = args[0], (torch.randn(25, 9), args[0], args[0][:, :3])
    results = []
    for threads in (1, 2, 3, 5):
        with thread_count(threads):
            split = forward_and_backward("split_index", args, cotangents)
            residual = torch.ops.ifdd.lifting_residual(x, x[:, :3])
            spread = torch.ops.ifdd.lifting_residual_backward(*residual_args)
            loss = torch.ops.ifdd.lifting_loss(x, 1.0, 1.0, False)
            topk = torch.ops.ifdd.topk_split_index(x, 3, 3, 2, False)
            results.append([*split, residual, *spread, loss, *topk])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.instruction_sets
def test_gradients_over_many_chunks() -> None:
    args = _many_chunks()
    check("split_index", args)


X = torch.randn(2, 8, 6, 4)
TOKENIZER = (torch.randn(3, 4), torch.randn(3))
OFFSET = torch.randn(4, 64)
PAIRS = torch.randn(2, 8, 8)
ops = torch.ops.ifdd

REFUSALS: list[tuple[str, str, Callable[[], Any]]] = [
    ("rank", r"frame_tokens: x: expected shape .* got \(8, 6, 4\)",
     lambda: ops.frame_tokens(X[0], *TOKENIZER, 2, 3, 2)),
    ("integer frames", "frame_tokens: x: expected dtype float32 or .* got int64",
     lambda: ops.frame_tokens(X.long(), *TOKENIZER, 2, 3, 2)),
    ("grid", r"frame_tokens: x: expected N = height \* width = 2 \* 2 tokens",
     lambda: ops.frame_tokens(X, *TOKENIZER, 2, 2, 2)),
    ("negative grid", "frame_tokens: height: expected a positive 32-bit integer, got -2",
     lambda: ops.frame_tokens(X, *TOKENIZER, -2, -3, 2)),
    ("overflowing grid", "frame_tokens: width: expected a positive 32-bit integer",
     lambda: ops.frame_tokens(X, *TOKENIZER, 2, 2**63 - 1, 2)),
    ("pool", "frame_tokens: pool: expected a positive 32-bit integer, got 0",
     lambda: ops.frame_tokens(X, *TOKENIZER, 2, 3, 0)),
    ("no channels", "frame_tokens: x: expected at least one channel",
     lambda: ops.frame_tokens(X[..., :0], TOKENIZER[0][:, :0], TOKENIZER[1], 2, 3, 2)),
    ("no rows", "frame_tokens: weight: expected at least one row",
     lambda: ops.frame_tokens(X, TOKENIZER[0][:0], TOKENIZER[1][:0], 2, 3, 2)),
    ("weight", r"frame_tokens: weight: expected shape \(-1, 4\) .* got \(3, 5\)",
     lambda: ops.frame_tokens(X, torch.randn(3, 5), TOKENIZER[1], 2, 3, 2)),
    ("bias dtype", "frame_tokens: bias: expected dtype float32, got float64",
     lambda: ops.frame_tokens(X, TOKENIZER[0], TOKENIZER[1].double(), 2, 3, 2)),
    ("tokens gradient", r"frame_tokens_backward: grad_tokens: expected shape \(2, 8, 12\)",
     lambda: ops.frame_tokens_backward(torch.randn(2, 8, 11), X, *TOKENIZER, 2, 3, 2)),
    ("correlation rank", "frame_correlation: tokens: expected shape",
     lambda: ops.frame_correlation(X, 1.0)),
    ("correlation gradient",
     "frame_correlation_backward: grad_correlation: expected dtype float32, got float64",
     lambda: ops.frame_correlation_backward(torch.randn(2, 8, 8).double(), X[:, :, 0], 1.0)),
    ("odd frames", "split_index: x: expected an even number of frames",
     lambda: ops.split_index(X[:, :7], *TOKENIZER, OFFSET, OFFSET, 2, 3, 2, 2.0)),
    ("offset weight", r"split_index: dynamic_weight: expected shape \(4, 64\) .* got \(4, 63\)",
     lambda: ops.split_index(X, *TOKENIZER, OFFSET, OFFSET[:, 1:], 2, 3, 2, 2.0)),
    ("index gradient", r"split_index_backward: grad_dynamic_index: expected shape \(2, 4\)",
     lambda: ops.split_index_backward(X[:, :4, 0, 0], X[:, :3, 0, 0], PAIRS, X, *TOKENIZER, OFFSET, OFFSET,
                                      PAIRS, 2, 3, 2, 2.0)),
    ("saved correlation", r"split_index_backward: correlation: expected shape \(2, 8, 8\)",
     lambda: ops.split_index_backward(X[:, :4, 0, 0], X[:, :4, 0, 0], PAIRS, X, *TOKENIZER, OFFSET, OFFSET,
                                      PAIRS[..., :7], 2, 3, 2, 2.0)),
    ("one frame", "topk_split_index: x: expected an even number of frames",
     lambda: ops.topk_split_index(X[:, :1], 2, 3, 2, False)),
    ("residual channels", r"lifting_residual: approximation: expected shape \(2, -1, 6, 4\)",
     lambda: ops.lifting_residual(X, X[..., :3])),
    ("residual dtype", "lifting_residual: approximation: expected dtype float64 exactly if x has it",
     lambda: ops.lifting_residual(X, X.double())),
    ("residual gradient", r"lifting_residual_backward: grad_residual: expected shape \(2, 6\)",
     lambda: ops.lifting_residual_backward(torch.randn(2, 5), X, X)),
    ("scalar loss", r"lifting_loss: residual: expected shape \(B, ...\), got a scalar",
     lambda: ops.lifting_loss(torch.tensor(1.0), 1.0, 1.0, False)),
    ("integer loss", "lifting_loss: residual: expected dtype .* got int64",
     lambda: ops.lifting_loss(X.long(), 1.0, 1.0, False)),
    ("beta", "lifting_loss: beta: expected a positive number, got 0",
     lambda: ops.lifting_loss(X, 1.0, 0.0, False)),
    ("loss gradient", "lifting_loss_backward: grad_loss: expected shape",
     lambda: ops.lifting_loss_backward(torch.ones(1), X, 1.0, 1.0, False)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), [pytest.param(*case[1:], id=case[0]) for case in REFUSALS])
def test_direct_calls_are_refused_not_crashed(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=f"ifdd::{message}"):
        call()
