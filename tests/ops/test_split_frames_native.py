"""The native split_frames against its definition: values, gradients, bits, special values, refusals."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import ifdd_kernels
from ifdd_kernels import _library
from ops.backend_checks import check_as_exact_as_reference
from ops.cases import forward_and_backward

pytestmark = pytest.mark.skipif(
    not _library.loaded(), reason=f"native library not loaded: {_library.failure()}"
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
#: (B, T, N, C, Ks, Kd): the network's ratio, odd sizes, several chunks of positions with a rest, one channel.
SIZES = ((2, 8, 49, 96, 4, 4), (3, 5, 17, 37, 2, 4), (1, 2, 1, 1, 1, 3), (2, 8, 33, 130, 4, 4))


def make_inputs(
    dtype: torch.dtype, sizes: tuple[int, ...], floating: bool, norm: bool, seed: int = 0
) -> tuple[Any, ...]:
    """x with permuted strides, indexes (some clamped), norms and gradients of the outputs."""
    B, T, N, C, Ks, Kd = sizes
    generator = torch.Generator().manual_seed(seed + B * 1000 + C)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(B, N, T, C).to(dtype).transpose(1, 2)
    indexes = [
        (torch.rand(B, k, generator=generator, dtype=torch.float64) * (T + 3) - 1.5).to(wide)
        if floating
        else torch.randint(0, T, (B, k), generator=generator)
        for k in (Ks, Kd)
    ]
    norms = [(normal(C) + 1).to(dtype) if norm else None for _ in range(4)]
    grads = [normal(B, Ks, N, C).to(dtype), normal(B, Kd, C, N).to(dtype).transpose(2, 3)]
    return x, indexes, norms, grads


def given(inputs: tuple[Any, ...], aligned: bool) -> tuple[Any, ...]:
    """Arguments of the op, and the gradients of its outputs."""
    x, indexes, norms, grads = inputs
    return (x, *indexes, *norms, 1e-5, aligned), grads


def run(inputs: tuple[Any, ...], aligned: bool, backend: str = "native") -> tuple[Tensor, ...]:
    """Outputs and all gradients, straight from the registered ops."""
    return forward_and_backward("split_frames", *given(inputs, aligned), backend)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("aligned", [False, True], ids=["unaligned", "aligned"])
def test_is_as_exact_as_the_reference(dtype: torch.dtype, sizes: tuple[int, ...], aligned: bool) -> None:
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for floating, norm in product([True, False], repeat=2):
        check_as_exact_as_reference(
            "split_frames",
            *given(make_inputs(dtype, sizes, floating, norm), aligned),
            lambda _: 16 * unit,
            eager_factor=2,
            # A single channel is normalised to 0: what remains of its gradients is rounding.
            gradient_factor=1e3 if sizes[3] == 1 and norm else 1,
            vanishing=1e-2 if sizes[3] == 1 and norm else 0.0,
            mean_square=True,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("floating", [True, False], ids=["floating", "integer"])
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, floating: bool) -> None:
    inputs = make_inputs(dtype, (5, 6, 67, 70, 3, 2), floating, norm=True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(inputs, aligned=False))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_public_function_differentiates_through_the_native_op() -> None:
    x, indexes, norms, grads = make_inputs(torch.float64, SIZES[1], floating=True, norm=True)
    results = []
    for backend in ("native", "reference"):
        leaves = [t.detach().clone().requires_grad_() for t in (x, *indexes, *norms)]
        static_norm, dynamic_norm = (leaves[3], leaves[4]), (leaves[5], leaves[6])
        outputs = ifdd_kernels.split_frames(*leaves[:3], static_norm, dynamic_norm, backend=backend)
        results.append(torch.autograd.grad(outputs, leaves, grads))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_weights_may_be_wider_than_frames() -> None:
    x, indexes, norms, grads = make_inputs(torch.bfloat16, SIZES[0], floating=True, norm=True)
    inputs = (x, indexes, [n.float() for n in norms], grads)
    native, reference = run(inputs, False), run(inputs, False, "reference")
    assert native[6].dtype == torch.float32
    for a, r in zip(native, reference, strict=True):
        assert a.dtype == r.dtype
        torch.testing.assert_close(a.double(), r.double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("sizes", [(0, 8, 3, 5, 4, 4), (2, 8, 0, 5, 4, 4)], ids=["no clips", "no tokens"])
@pytest.mark.parametrize("floating", [True, False])
def test_empty(sizes: tuple[int, ...], floating: bool) -> None:
    inputs = make_inputs(torch.float32, sizes, floating, norm=True)
    for a, r in zip(run(inputs, False), run(inputs, False, "reference"), strict=True):
        assert a.shape == r.shape
        assert torch.equal(a, r)  # gradients of weights summed over nothing: zeros, not memory


def test_one_frame_can_be_gathered() -> None:
    x, index = torch.randn(2, 1, 3, 4), torch.zeros(2, 2, dtype=torch.int64)
    static, dynamic, _ = torch.ops.ifdd.split_frames(x, index, index, None, None, None, None, 1e-5, False)
    assert torch.equal(static, x.expand(2, 2, 3, 4))
    assert torch.equal(dynamic, static)


@pytest.mark.parametrize("channels", [48, 768, 1500])
@pytest.mark.parametrize("pattern", ["far mean", "far block", "far constant block", "one far channel"])
def test_moments_of_uneven_rows(channels: int, pattern: str) -> None:
    """The variance is as exact as that of two passes, where a mean is large beside the deviations."""
    x = torch.randn(1, 8, 9, channels, generator=torch.Generator().manual_seed(channels))
    if pattern == "far mean":
        x += 1000
    elif pattern == "far block":
        x[..., :64] += 1000
    elif pattern == "far constant block":
        x[..., :64] = 1000
    else:
        x[..., -1] += 1e4
    index = torch.tensor([[0.3, 2.2, 4.1, 6.2]])

    def static(dtype: torch.dtype, backend: str) -> Tensor:
        norm = (torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype))
        positions = index.to(dtype)
        groups = ifdd_kernels.split_frames(x.to(dtype), positions, positions + 1, norm, norm, backend=backend)
        return groups[0].double()

    exact = static(torch.float64, "reference")
    error = float((static(torch.float32, "native") - exact).abs().max())
    of_two_passes = float((static(torch.float32, "reference") - exact).abs().max())
    rounding = torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert error <= 3 * max(of_two_passes, rounding)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_value_survives_load_and_store(dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x, index = values.view(1, 1, 256, 256), torch.zeros(1, 1, dtype=torch.int64)
    static, _, _ = torch.ops.ifdd.split_frames(x, index, index, None, None, None, None, 1e-5, False)
    torch.testing.assert_close(static, x, rtol=0, atol=0, equal_nan=True)
    finite = ~values.isnan()
    assert torch.equal(static.flatten().view(torch.int16)[finite], values.view(torch.int16)[finite])


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_stores_round_as_torch_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    magnitude = 2.0 ** (torch.rand(1, 2, 64, 257, generator=generator) * 44 - 27)
    x = (magnitude * torch.randn(1, 2, 64, 257, generator=generator)).to(dtype)  # subnormals to overflow
    index = torch.tensor([[0.25, 0.5]])
    static, _, _ = torch.ops.ifdd.split_frames(x, index, index, None, None, None, None, 1e-5, True)
    wide = x.float()
    # Weights of quarters and halves multiply exactly, so only the sum and the store round.
    expected = torch.stack([0.75 * wide[:, 0] + 0.25 * wide[:, 1], 0.5 * wide[:, 0] + 0.5 * wide[:, 1]], 1)
    torch.testing.assert_close(static, expected.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.instruction_sets
def test_special_values_stay_where_they_are() -> None:
    x = torch.randn(1, 3, 2, 70)
    x[0, 1] = float("inf")
    gathered = torch.tensor([[0, 2]])
    static, _, _ = torch.ops.ifdd.split_frames(x, gathered, gathered, None, None, None, None, 1e-5, False)
    assert torch.equal(static, x[:, [0, 2]])
    nan = torch.tensor([[float("nan"), 0.0]])
    static, _, _ = torch.ops.ifdd.split_frames(x, nan, nan, None, None, None, None, 1e-5, True)
    assert static[0, 0].isnan().all()
    far = torch.tensor([[-1e30, float("inf")]])
    finite = torch.randn(1, 3, 2, 70)
    static, _, _ = torch.ops.ifdd.split_frames(finite, far, far, None, None, None, None, 1e-5, False)
    assert torch.equal(static, finite[:, [0, 2]])


def arguments(**changes: Any) -> list[Any]:
    """Arguments of torch.ops.ifdd.split_frames, some replaced."""
    given = {
        "x": torch.randn(2, 4, 3, 5),
        "static_index": torch.rand(2, 2),
        "dynamic_index": torch.rand(2, 2),
        "static_norm_weight": torch.ones(5),
        "static_norm_bias": torch.ones(5),
        "dynamic_norm_weight": torch.ones(5),
        "dynamic_norm_bias": torch.ones(5),
        "eps": 1e-5,
        "aligned": False,
    }
    return list({**given, **changes}.values())


integers = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(4, 3, 5)}, r"x: expected shape .* got \(4, 3, 5\)"),
        ({"x": torch.ones(2, 4, 3, 5, dtype=torch.int32)}, "x: expected dtype float32 or .* got int32"),
        ({"x": torch.randn(2, 1, 3, 5)}, "x: expected at least 2 frames"),
        ({"x": torch.randn(2, 4, 3, 0)}, "x: expected at least one channel"),
        ({"static_index": torch.rand(3, 2)}, r"static_index: expected shape \(2, -1\) .* got \(3, 2\)"),
        ({"dynamic_index": torch.rand(2)}, r"dynamic_index: expected shape .* got \(2,\)"),
        ({"static_index": torch.rand(2, 0)}, "static_index: expected at least one index"),
        ({"static_index": torch.rand(2, 2).double()}, "static_index: expected dtype .* got float64"),
        (
            {"dynamic_index": integers},
            "dynamic_index: expected the dtype of .* float32, got int64",
        ),
        ({"dynamic_norm_bias": None}, "dynamic_norm_bias: expected all norm tensors or none, got None"),
        ({"static_norm_weight": None}, "static_norm_bias: expected all norm tensors or none, got this one"),
        ({"static_norm_bias": torch.ones(4)}, r"static_norm_bias: expected shape \(5,\) .* got \(4,\)"),
        (
            {"dynamic_norm_weight": torch.ones(5).double()},
            "dynamic_norm_weight: expected dtype float32, got float64",
        ),
        (
            {"static_index": integers, "dynamic_index": integers * 2},
            r"dynamic_index: index out of range: expected 0 <= index < T = 4, got 4 at \(1, 0\)",
        ),
        (
            {"static_index": -integers, "dynamic_index": integers},
            "static_index: index out of range: .* T = 4, got -1",
        ),
    ],
)
def test_direct_calls_are_refused_not_crashed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"ifdd::split_frames: {message}"):
        torch.ops.ifdd.split_frames(*arguments(**changes))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.randn(2, 2, 3, 4), "grad_static_frames: expected shape"),
        (1, torch.randn(2, 2, 3, 5).double(), "grad_dynamic_frames: expected dtype float32, got float64"),
        (6, None, "dynamic_norm_weight: expected all norm tensors or none"),
        (7, torch.rand(2, 4, 3, 1), r"stats: expected shape \(2, 4, 3, 2\)"),
        (7, torch.rand(0), "stats: expected shape"),
    ],
)
def test_direct_backward_calls_are_refused_not_crashed(place: int, value: Any, message: str) -> None:
    x, indexes, norms, grads = make_inputs(torch.float32, (2, 4, 3, 5, 2, 2), floating=True, norm=True)
    stats = torch.rand(2, 4, 3, 2)
    call = [*grads, x, *indexes, norms[0], norms[2], stats, False]
    torch.ops.ifdd.split_frames_backward(*call)
    call[place] = value
    with pytest.raises(RuntimeError, match=f"ifdd::split_frames_backward: {message}"):
        torch.ops.ifdd.split_frames_backward(*call)
