"""The native max_pool_tokens, linear, gelu_linear beyond the registry: ties, NaN, blocks, tails, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ifdd_kernels import _products, gelu_linear, linear, max_pool_tokens
from ifdd_kernels.backends import can_run
from ifdd_kernels.testing import check_against_float64, poisoned_memory, thread_count

pytestmark = pytest.mark.skipif(
    not can_run("max_pool_tokens", "native"), reason=can_run("max_pool_tokens", "native").reason
)
ops = torch.ops.ifdd
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tokens(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal values in few distinct numbers, so that windows have ties."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values * 2).round() / 2 + 0.25).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 3, 4), (3, 1, 5), (1, 1, 1), (9, 40, 2)], ids=str)
def test_max_pool_is_the_reference_bit_for_bit(dtype: torch.dtype, stride: tuple[int, int, int]) -> None:
    """Ties, NaN, infinities, a rest of channels beyond one block, and gradients of several windows."""
    grid = (3, 9, 8)
    x = tokens(2, 1 + 3 * 9 * 8, 261, dtype=dtype)
    x[0, 7, 3], x[1, 100, 260] = float("nan"), float("inf")
    x[0, 1:60, 5] = -float("inf")
    expected, places = ops.max_pool_tokens_reference(x, grid, stride)
    with poisoned_memory():
        out, rows = ops.max_pool_tokens(x, grid, stride)
    assert torch.equal(rows, places)
    assert torch.equal(out.nan_to_num(nan=1e4), expected.nan_to_num(nan=1e4))
    grad = tokens(*out.shape, dtype=dtype, seed=1)  # eighths: sums of a few are exact
    with poisoned_memory():
        actual = ops.max_pool_tokens_backward(grad, rows, grid, stride)
    assert torch.equal(actual, ops.max_pool_tokens_backward_reference(grad, rows, grid, stride))


def test_max_pool_is_that_of_pytorch() -> None:
    x = tokens(2, 1 + 4 * 6 * 10, 7).requires_grad_()
    volume = x[:, 1:].unflatten(1, (4, 6, 10)).permute(0, 4, 1, 2, 3)
    pooled = F.max_pool3d(volume, (1, 3, 3), (1, 2, 2), (0, 1, 1)).flatten(2).transpose(1, 2)
    expected = torch.cat((x[:, :1], pooled), 1)
    actual = max_pool_tokens(x, (4, 6, 10), (1, 2, 2))
    grad = tokens(*actual.shape, seed=2)
    assert torch.equal(actual, expected)
    for one, other in zip(
        torch.autograd.grad(actual, x, grad), torch.autograd.grad(expected, x, grad), strict=True
    ):
        assert torch.equal(one, other)


def test_shortcut_is_not_kept_for_backward() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = tokens(1, 1 + 2 * 4 * 4, 6).requires_grad_()
    hidden = tokens(3, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        max_pool_tokens(x * 2, (2, 4, 4), (1, 2, 2))
        rows = [tensor for tensor in kept if tensor.dtype == torch.int32]
        assert [tuple(t.shape) for t in rows] == [(1, 8, 6)]
        assert all(tensor.shape != x.shape for tensor in kept)
        kept.clear()
        gelu_linear(hidden, tokens(4, 8), tokens(4))
    assert [tuple(t.shape) for t in kept] == [(3, 8), (4, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_max_pool_does_not_depend_on_threads(dtype: torch.dtype) -> None:
    x, grad = tokens(2, 1 + 8 * 14 * 14, 96, dtype=dtype), tokens(2, 1 + 8 * 7 * 7, 96, dtype=dtype, seed=3)
    results = []
    for threads in (1, 2, 3):
        with thread_count(threads):
            out, rows = ops.max_pool_tokens(x, (8, 14, 14), (1, 2, 2))
            results.append((out, rows, ops.max_pool_tokens_backward(grad, rows, (8, 14, 14), (1, 2, 2))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_gelu_is_accurate_in_the_tail() -> None:
    """With the identity as weight the op is GELU: its error against float64, relative to the value itself."""
    x = torch.linspace(-12, 12, 4001)[:, None]
    weight, bias = torch.ones(1, 1), torch.zeros(1)
    exact = x.double() * 0.5 * torch.erfc(-x.double() / 2**0.5)
    with poisoned_memory():
        actual = ops.gelu_linear(x, weight, bias)
    # x^2 / 2 is rounded before the exponential: 72 half-ulps at 12, beside a few of the polynomial.
    allowed = (8 + x.double().square() / 2) * torch.finfo(torch.float32).eps
    assert ((actual.double() - exact).abs() <= allowed * exact.abs() + 1e-37).all()


def gelu_then_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.gelu(x), weight, bias)


@pytest.fixture
def in_float32() -> Iterator[None]:
    """16-bit products through float32, whatever is faster on this CPU."""
    with _products.forced(through=True):
        yield


# Both ways of 16-bit products on any CPU, whichever is faster there.
@pytest.mark.parametrize(
    ("dtype", "through"),
    [
        (torch.float64, False),
        (torch.float32, False),
        *((dtype, through) for dtype in (torch.bfloat16, torch.float16) for through in (False, True)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "rows", [67, 1901]
)  # the second are three blocks of rows in 16 bits, as equal as they can be
@pytest.mark.parametrize(
    ("op", "layers"), [(ops.linear, F.linear), (ops.gelu_linear, gelu_then_linear)], ids=["linear", "gelu"]
)
def test_linear_layers_are_as_exact_as_those_of_pytorch(
    op: Any, layers: Any, rows: int, dtype: torch.dtype, through: bool
) -> None:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    args, grad = (normal(3, rows, 389), normal(97, 389, scale=0.05), normal(97)), normal(3, rows, 97)

    def run(function: Any, inputs: Any, cotangent: Tensor) -> list[Tensor]:
        leaves = [a.clone().requires_grad_() for a in inputs]
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]

    exact = run(layers, [a.double() for a in args], grad.double())
    with poisoned_memory(), _products.forced(through):
        ours = run(op, args, grad)
    check_against_float64(
        ours,
        exact,
        # What stands for exact is float64 too, with an error of its own.
        lambda dtype: torch.finfo(dtype).eps * (8 if dtype == torch.float64 else 1),
        results=1,
        dtypes=[dtype] * 4,
        gradient_factor=1,
        eager=run(layers, args, grad),
        eager_factor=2,
        vanishing=0.0,
        mean_square=True,
    )


@pytest.mark.usefixtures("in_float32")
def test_auto_takes_float32_products_for_16_bits_only() -> None:
    x, weight, bias = torch.randn(3, 40, 24), torch.randn(8, 24), torch.randn(8)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    for dtype in (torch.bfloat16, torch.float16):
        low = [t.to(dtype) for t in (x, weight, bias)]
        once_rounded = F.linear(*(t.float() for t in low)).to(dtype)
        assert torch.equal(linear(*low), ops.linear(*low))
        # Rounded twice, many would differ; the order of a float32 sum may move one that is near a tie.
        assert (linear(*low) != once_rounded).float().mean() < 0.01
        assert torch.equal(linear(low[0], low[1]), ops.linear(low[0], low[1], None))


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("op", [linear, gelu_linear], ids=["linear", "gelu_linear"])
def test_autocast_keeps_no_copy_of_the_weight_and_rounds_no_gradient(op: Any) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(5, 60, 24).requires_grad_()
    weight, bias = torch.randn(8, 24).requires_grad_(), torch.randn(8).requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", dtype=torch.bfloat16), hooks:
        out = op(x, weight, bias)
    assert out.dtype == torch.bfloat16
    assert [t.data_ptr() for t in kept if t.shape == weight.shape] == [weight.data_ptr()]
    grad = torch.randn(out.shape).bfloat16()
    grads = torch.autograd.grad(out, (x, weight, bias), grad)
    assert all(g.dtype == torch.float32 for g in grads)
    argument = x.detach().bfloat16()
    argument = argument if op is linear else F.gelu(argument)
    exact = grad.double().flatten(0, 1).T @ argument.double().flatten(0, 1)
    # 300 products in float32; a gradient rounded to bfloat16 would be wrong by 2^-9. Of the activations a few
    # may be rounded to the other side: each 2^-8 of one of 300 terms.
    assert (grads[1] - exact).norm() < (2e-6 if op is linear else 3e-4) * exact.norm()


X = torch.randn(2, 1 + 2 * 4 * 4, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.max_pool_tokens(X[0], [2, 4, 4], [1, 2, 2]), r"x: expected shape \(-1, -1, -1\)"),
        (lambda: ops.max_pool_tokens(X, [2, 4, 5], [1, 2, 2]), r"x: expected shape \(-1, 41, -1\)"),
        (lambda: ops.max_pool_tokens(X, [2, 4, 0], [1, 2, 2]), "grid: expected three positive integers"),
        (lambda: ops.max_pool_tokens(X, [2**40, 2**40, 4], [1, 2, 2]), r"grid: expected fewer than 2\*\*31"),
        (lambda: ops.max_pool_tokens(X.int(), [2, 4, 4], [1, 2, 2]), "x: expected dtype float32 or"),
        (
            lambda: ops.max_pool_tokens_backward(X[:, :9], torch.ones(2, 8, 6), [2, 4, 4], [1, 2, 2]),
            "rows: expected dtype int32, got float32",
        ),
        (
            lambda: ops.max_pool_tokens_backward(X, torch.ones(2, 8, 6).int(), [2, 4, 4], [1, 2, 2]),
            r"grad_out: expected shape \(2, 9, 6\)",
        ),
        (
            lambda: ops.gelu_linear(X[0, 0], X[0], X[0, :, 0]),
            r"x: expected shape \(\.\.\., 6\) with at least two",
        ),
        (lambda: ops.gelu_linear(X, X[0, :4], X[0, 0]), r"bias: expected shape \(4,\)"),
        (lambda: ops.gelu_linear(X, X[0].double(), X[0, 0]), "weight: expected dtype float32, got float64"),
        (lambda: ops.gelu_linear_backward(X, X, X[0, :4]), "grad_out: expected the shape of x"),
        (lambda: ops.linear(X, X[0, :4, :5], None), r"x: expected shape \(\.\.\., 5\) with at least two"),
        (lambda: ops.linear(X, X[0, :4], X[0, 0]), r"bias: expected shape \(4,\)"),
        (lambda: ops.linear_backward(X, X, X[0, :4]), "grad_out: expected the shape of x"),
    ],
)
def test_direct_calls_are_refused_not_crashed(call: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()
