"""The native pool_tokens against its definition beyond the registry, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ifdd_kernels
from ifdd_kernels._operator import OPERATORS
from ifdd_kernels.backends import can_run
from ifdd_kernels.grids import live_tokens, pooled_grid
from ifdd_kernels.testing import poisoned_memory, thread_count
from ops.backend_checks import check_as_exact_as_reference
from ops.cases import forward_and_backward

pytestmark = pytest.mark.skipif(
    not can_run("pool_tokens", "native"), reason=can_run("pool_tokens", "native").reason
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: (T, H, W): every width of tile with and without a rest, odd and even borders, single cells.
GRIDS = ((1, 1, 1), (2, 3, 15), (3, 5, 7), (2, 1, 14))
STRIDES = (
    ((1, 1, 1), (1, 8, 8)),
    ((1, 2, 2), (1, 4, 4)),
    ((2, 1, 3), (3, 2, 1)),
    ((1, 5, 1), (2**62, 2**62, 2**62)),
)
CHANNELS = (1, 3, 16, 24, 96, 100)
OPERATOR = OPERATORS["pool_tokens"]
assert OPERATOR.wiring is not None


def make_inputs(
    dtype: torch.dtype,
    grid: tuple[int, int, int],
    strides: Any,
    channels: int,
    heads: int = 2,
    batch: int = 2,
    key_value_grid: tuple[int, int, int] | None = None,
) -> tuple[Any, ...]:
    """Arguments of the op, then the gradients of its outputs, those with permuted strides.

    With `key_value_grid`, keys and values come apart from the queries.
    """
    generator = torch.Generator().manual_seed(channels * 100 + sum(grid))

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    # Rows of the packed axis are dense, the tokens behind one another are not.
    parts = 1 if key_value_grid else 3
    qkv = normal(1 + math.prod(grid), batch, parts * heads * channels).transpose(0, 1)
    key_value = None
    if key_value_grid:
        key_value = normal(1 + math.prod(key_value_grid), batch, 2 * heads * channels).transpose(0, 1)
    weights = [normal(channels, 1, 3, 3, 3, scale=0.3) for _ in range(3)]
    norms = [normal(channels) + (place + 1) % 2 for place in range(6)]
    grids = (grid, key_value_grid or grid)
    rows = [1 + math.prod(pooled_grid(grids[part > 0], strides[part > 0])) for part in range(3)]
    grads = [normal(batch, heads, n, channels).transpose(1, 2) for n in rows]
    return (qkv, key_value, *weights, *norms, *map(list, grids), heads, *map(list, strides), 1e-6), grads


def run(args: tuple[Any, ...], grads: list[Tensor], backend: str = "native") -> tuple[Tensor, ...]:
    """Outputs and all gradients, straight from the registered ops."""
    return forward_and_backward("pool_tokens", args, grads, backend)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_is_as_exact_as_the_reference(dtype: torch.dtype, channels: int, strides: Any) -> None:
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for grid, key_value_grid in zip(GRIDS, (None, (1, 4, 5), None, (2, 7, 1)), strict=True):
        args, grads = make_inputs(dtype, grid, strides, channels, batch=1, key_value_grid=key_value_grid)
        check_as_exact_as_reference(
            "pool_tokens",
            args,
            grads,
            lambda _: 64 * unit,
            eager_factor=2,
            # One channel is normalised to zero: a norm divides what rounding is left of gradients by 1e-3.
            gradient_factor=1e3 if channels == 1 else 1,
            vanishing=1e-2 if channels == 1 else 1e-4,
            mean_square=True,
        )


def test_rows_no_window_touches_get_zeros() -> None:
    args, grads = make_inputs(torch.float32, (2, 17, 17), ((1, 2, 2), (1, 8, 8)), 16, heads=1)
    with poisoned_memory():
        grad = run(args, grads)[6].view(2, 1 + 2 * 17 * 17, 3, 16)[:, 1:].view(2, 2, 17, 17, 3, 16)
    touched = torch.tensor([(i + 1) % 8 <= 2 for i in range(17)])
    inside = touched[:, None] & touched[None, :]
    assert (grad[:, :, ~inside][..., 1:, :] == 0).all()
    assert (grad[:, :, inside] != 0).all()
    assert (grad[..., 0, :] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [(1, 8, 8), (2, 4, 3), (5, 1, 16), (4, 2, 6)], ids=str)
def test_live_tokens_alone_give_the_same(dtype: torch.dtype, stride: tuple[int, int, int]) -> None:
    """Without the tokens no window covers: the same outputs and gradients, the absent ones being zero."""
    grid, heads, channels = (6, 9, 16), 2, 20
    args, grads = make_inputs(dtype, grid, ((1, 2, 2), stride), channels, heads)
    live = live_tokens(grid, stride)
    query, key_value = args[0].split([heads * channels, 2 * heads * channels], -1)
    alone = (
        query,
        key_value[:, live.rows],
        *args[2:12],
        list(live.grid),
        heads,
        [1, 2, 2],
        list(live.stride),
    )
    full, apart = run(args, grads), run((*alone, 1e-6), grads)
    # The same sums over the same windows; only those over whole grids may be taken in another order.
    tolerance = 2e-2 if dtype == torch.bfloat16 else 100 * torch.finfo(dtype).eps
    scattered = torch.zeros_like(key_value).index_copy(1, live.rows, apart[7])
    for a, e in zip(
        (*apart[:6], torch.cat((apart[6], scattered), -1), *apart[8:]), (*full[:7], *full[8:]), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize("stride", range(1, 10))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 16, 17])
def test_live_tokens_are_those_with_a_gradient(size: int, stride: int) -> None:
    volume = torch.ones(1, 1, 1, size, 1, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, 1, 3, 3, 3, dtype=torch.float64)
    out = torch.nn.functional.conv3d(volume, ones, stride=(1, stride, 1), padding=1)
    (grad,) = torch.autograd.grad(out.sum(), volume)
    live = live_tokens((1, size, 1), (1, stride, 1))
    assert live.rows.tolist() == [0, *(1 + grad.flatten().nonzero().flatten()).tolist()]
    assert live.grid == (1, live.rows.numel() - 1, 1)
    assert pooled_grid(live.grid, live.stride) == pooled_grid((1, size, 1), (1, stride, 1))


def test_live_tokens_of_the_network() -> None:
    """The counts of the three blocks whose keys' strides leave gaps: 12.8, 53.6 and 51.0 %."""
    for size, stride, share in ((56, 8, 0.128), (56, 4, 0.536), (28, 4, 0.510)):
        live = live_tokens((8, size, size), (1, stride, stride))
        assert abs((live.rows.numel() - 1) / (8 * size**2) - share) < 5e-4
        assert live.rows.unique().numel() == live.rows.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    args, grads = make_inputs(dtype, (3, 14, 14), ((1, 1, 1), (1, 2, 2)), 96, heads=2)
    results = []
    for threads in (1, 2, 3, 5):
        with thread_count(threads):
            results.append(run(args, grads))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_parameters_may_be_wider_than_activations() -> None:
    args, grads = make_inputs(torch.bfloat16, (2, 5, 7), ((1, 1, 1), (1, 2, 2)), 24)
    wide = (*args[:2], *(a.float() for a in args[2:11]), *args[11:])
    native, reference = run(wide, grads), run(wide, grads, "reference")
    assert all(g.dtype == torch.float32 for g in native[8:])
    for a, r in zip(native, reference, strict=True):
        assert a.dtype == r.dtype
        torch.testing.assert_close(a.double(), r.double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("spread", ["channels", "expanded batch"])
def test_strides(spread: str) -> None:
    args, grads = make_inputs(torch.float32, (2, 3, 5), ((1, 1, 1), (1, 2, 2)), 5)
    if spread == "channels":
        inputs = (args[0].transpose(1, 2).contiguous().transpose(1, 2), *args[1:])
        cotangents = [g.transpose(2, 3).contiguous().transpose(2, 3) for g in grads]
    else:
        inputs = (args[0][:1].expand_as(args[0]), *args[1:])
        cotangents = [g[:1, :1].expand_as(g) for g in grads]
    dense = tuple(a.contiguous() if isinstance(a, Tensor) else a for a in inputs)
    expected = run(dense, [g.contiguous() for g in cotangents])
    for a, e in zip(run(inputs, cotangents), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("key_value_grid", [None, (2, 3, 5)], ids=str)
def test_public_function_differentiates_through_the_native_op(key_value_grid: Any) -> None:
    args, grads = make_inputs(
        torch.float64, (2, 4, 7), ((1, 2, 2), (1, 1, 4)), 8, key_value_grid=key_value_grid
    )
    results = []
    for backend in ("native", "reference"):
        leaves = [a.detach().clone().requires_grad_() for a in args[:11] if a is not None]
        norms = (leaves[-6:-4], leaves[-4:-2], leaves[-2:])
        apart = {"key_value": leaves[1], "key_value_grid": key_value_grid} if key_value_grid else {}
        outputs = ifdd_kernels.pool_tokens(
            leaves[0], *leaves[-9:-6], *norms, args[11], *args[13:16], **apart, backend=backend
        )
        results.append(torch.autograd.grad(outputs, leaves, grads))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.instruction_sets
def test_a_value_that_is_not_finite_reaches_only_its_windows() -> None:
    args, _ = make_inputs(torch.float32, (1, 3, 40), ((1, 1, 1), (1, 1, 1)), 5, heads=1, batch=1)
    qkv = args[0].clone()
    qkv[0, 1 + 40 + 20] = float("nan")
    query = torch.ops.ifdd.pool_tokens(qkv, *args[1:])[0][0, 1:].view(3, 40, 5)
    assert query[:, 19:22].isnan().all()
    assert query[:, :19].isfinite().all()
    assert query[:, 22:].isfinite().all()


NAMES = ("qkv", "key_value", "weight_q", "weight_k", "weight_v", "norm_weight_q", "norm_bias_q")
NAMES += ("norm_weight_k", "norm_bias_k", "norm_weight_v", "norm_bias_v", "grid", "key_value_grid", "heads")
NAMES += ("stride_q", "stride_kv", "eps")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.randn(31, 30)}, r"qkv: expected shape \(-1, -1, -1\) .* got \(31, 30\)"),
        ({"qkv": torch.ones(2, 31, 30, dtype=torch.int32)}, "qkv: expected dtype float32 or .* got int32"),
        (
            {"qkv": torch.randn(2, 30, 30)},
            r"qkv: expected 1 \+ T\*H\*W tokens for grid \(2, 3, 5\), got shape",
        ),
        ({"qkv": torch.randn(2, 0, 30)}, r"qkv: expected 1 \+ T\*H\*W tokens"),
        ({"qkv": torch.randn(2, 31, 31)}, r"qkv: expected a last axis of 3 \* heads \* d with heads = 2"),
        ({"qkv": torch.randn(2, 31, 0)}, "heads: expected a positive number of heads"),
        ({"qkv": torch.randn(2, 31, 30).double()}, "weight_q: expected dtype float64, got float32"),
        ({"grid": [2, 3]}, "pool_tokens.*expected"),
        ({"key_value_grid": [2, 5, 3]}, r"key_value_grid: expected that of qkv, \(2, 3, 5\), as key_value"),
        ({"key_value_grid": [2, 0, 3]}, r"key_value_grid: expected three positive integers"),
        (
            {"qkv": torch.randn(2, 31, 10), "key_value": torch.randn(2, 30, 20)},
            r"key_value: expected 1 \+ T\*H\*W tokens for grid \(2, 3, 5\)",
        ),
        (
            {"qkv": torch.randn(2, 31, 10), "key_value": torch.randn(1, 31, 20)},
            r"key_value: expected shape \(2, -1, 20\) .* got \(1, 31, 20\)",
        ),
        (
            {"qkv": torch.randn(2, 31, 10), "key_value": torch.randn(2, 31, 12)},
            r"key_value: expected shape \(2, -1, 20\) .* got \(2, 31, 12\)",
        ),
        (
            {"qkv": torch.randn(2, 31, 10), "key_value": torch.randn(2, 31, 20).double()},
            "key_value: expected dtype float32, got float64",
        ),
        ({"grid": [2**40, 2**40, 2**40]}, r"qkv: expected 1 \+ T\*H\*W tokens"),
        ({"grid": [0, 3, 5]}, r"grid: expected three positive integers .* got \(0, 3, 5\)"),
        ({"stride_q": [1, -1, 1]}, r"stride_q: expected three positive integers .* got \(1, -1, 1\)"),
        ({"stride_kv": [1, 0, 1]}, "stride_kv: expected three positive integers"),
        ({"heads": 0}, "heads: expected a positive number of heads .* got 0"),
        ({"heads": 2**62}, "heads: expected a positive number of heads"),
        ({"weight_k": torch.randn(5, 1, 3, 3)}, r"weight_k: expected shape \(5, 1, 3, 3, 3\)"),
        ({"weight_v": torch.randn(4, 1, 3, 3, 3)}, "weight_v: expected shape"),
        ({"norm_bias_v": torch.randn(6)}, r"norm_bias_v: expected shape \(5,\) .* got \(6,\)"),
        ({"norm_weight_k": torch.randn(5).bfloat16()}, "norm_weight_k: expected dtype float32, got bfloat16"),
        ({"eps": 0.0}, "eps: expected a positive number, got 0"),
        ({"eps": float("nan")}, "eps: expected a positive number, got nan"),
    ],
)
def test_direct_calls_are_refused_not_crashed(changes: dict[str, Any], message: str) -> None:
    args, _ = make_inputs(torch.float32, (2, 3, 5), ((1, 1, 1), (1, 2, 2)), 5)
    given = dict(zip(NAMES, args, strict=True))
    torch.ops.ifdd.pool_tokens(*given.values())
    with pytest.raises(RuntimeError, match=message):
        torch.ops.ifdd.pool_tokens(*{**given, **changes}.values())


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(2, 31, 2, 4), r"grad_query: expected shape \(2, 31, 2, 5\) .* got \(2, 31, 2, 4\)"),
        (1, torch.randn(2, 13, 2, 5).double(), "grad_key: expected dtype float32, got float64"),
        (2, torch.randn(2, 13, 10), "grad_value: expected shape"),
        (3, torch.randn(2, 31, 29), "qkv: expected a last axis"),
        (4, torch.randn(2, 31, 20), r"key_value: expected shape \(2, -1, 60\)"),
        (5, torch.randn(5), "weight_q: expected shape"),
        (10, torch.randn(5, 1), "norm_weight_v: expected shape"),
        (11, torch.randn(2, 31, 2), r"stats_q: expected shape \(2, 31, 2, 2\)"),
        (13, torch.randn(2, 13, 2, 2).double(), "stats_v: expected dtype float32"),
        (14, [2, 3, 6], r"qkv: expected 1 \+ T\*H\*W tokens"),
        (15, [2, 3, 6], "key_value_grid: expected that of qkv"),
        (16, -1, "heads: expected a positive number of heads"),
        (18, [1, 1, 1], "grad_key: expected shape"),
    ],
)
def test_direct_backward_calls_are_refused_not_crashed(place: int, value: Any, message: str) -> None:
    args, grads = make_inputs(torch.float32, (2, 3, 5), ((1, 1, 1), (1, 2, 2)), 5)
    call = list(OPERATOR.wiring.arguments(args, torch.ops.ifdd.pool_tokens(*args), grads))
    torch.ops.ifdd.pool_tokens_backward(*call)
    call[place] = value
    with pytest.raises(RuntimeError, match=f"ifdd::pool_tokens_backward: {message}"):
        torch.ops.ifdd.pool_tokens_backward(*call)
